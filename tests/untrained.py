"""A run directory that was never trained: a checkpoint of random parameters, written in seconds."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from launch import command_line
from mmjax.checkpoint.manager import Checkpoint, Checkpoints
from mmjax.config import experiment_file
from mmjax.config.experiment import Experiment
from mmjax.data.sources.base import Recording
from mmjax.model import build_model
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS

STEP = 3
SENTENCE = "a red circle left of a blue square"
# Sees images and texts; answers, aligns, and writes texts.
SMALLER = (
    *("data.source.train=48", "data.source.speech=false", "model.width=16", "model.fusion=Concat"),
    *("model.unroll=false", "mesh.data=1", "train.ema=0.5", "data.inputs.image.size=16"),
    *("model.encoders.image.patch=8", "model.encoders.image.depth=1", "model.encoders.image.heads=2"),
    *("model.encoders.text.depth=1", "model.encoders.text.heads=2"),
    *(f"model.outputs.{name}=None" for name in ("shape", "colour", "size", "position", "speech_text")),
    *("model.outputs.image_text.size=16", "model.outputs.image_text.heads=2"),
    *("model.outputs.writer=TextDecoder", "model.outputs.writer.target=text", "model.outputs.writer.depth=1"),
    "model.outputs.writer.heads=2",
)
# Hears speech, too, and draws images.
WORDS = (
    *(*SMALLER, "model.dtype=float32", "data.inputs.speech.seconds=0.8"),
    *("model.encoders.speech.depth=1", "model.encoders.speech.heads=2"),
    *("model.outputs.image=Vae", "model.outputs.image.target=image", "model.outputs.image.widths=8,8"),
)


def write_run(run_dir: Path, data_dir: Path, *words: str) -> Path:
    """Scenes with `words`; returns the run directory."""
    scenes = command_line.load_experiment("scenes")
    return write_experiment(command_line.resolve(scenes, [*words, f"run_dir={run_dir}", f"data_dir={data_dir}"]))


def write_experiment(experiment: Experiment) -> Path:
    """Its run directory, with a checkpoint of random parameters."""
    run_dir = Path(experiment.run_dir)
    data = experiment.data.fit_tokenizers(experiment.data_dir)
    experiment_file.write(experiment, run_dir)
    data.save(run_dir)
    build = functools.partial(build_model, model=experiment.model, features=data.features, rules=PRESETS["fsdp"])
    with jax.set_mesh(MeshShape(data=1).build(jax.devices()[:1])):
        shapes = jax.eval_shape(build, jax.random.key(0))
        model, average = (jax.tree.map(_drawer(seed), shapes) for seed in (0, 1))
        fingerprints = [experiment_file.fingerprint(experiment)]
        with contextlib.closing(Checkpoints(run_dir, Checkpoint(), fingerprints=fingerprints)) as checkpoints:
            checkpoints.save(STEP, {"model": model, "ema": average}, {}, {})
    return run_dir


def _drawer(seed: int) -> Callable[[jax.ShapeDtypeStruct], jax.Array]:
    """Draws parameters of given shapes, which takes less than compiling what really draws them."""
    rng = np.random.default_rng(seed)
    return lambda leaf: jax.device_put(rng.normal(0, 0.2, leaf.shape).astype(leaf.dtype), leaf.sharding.spec)


def examples(count: int) -> dict[str, list]:
    """Raw pictures, texts and recordings."""
    rng = np.random.default_rng(0)
    return {
        "image": [*rng.integers(0, 256, (count, 48, 80, 3), np.uint8)],
        "text": [SENTENCE, "a red circle", "two stars"][:count],
        "speech": [Recording(rng.normal(size=8000 + 800 * i).astype(np.float32) / 9, 8000) for i in range(count)],
    }
