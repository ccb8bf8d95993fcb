"""Evaluate a run's model on held-out data: `python -m launch.evaluate RUN_DIR [given=text] [readers.image=RUN]`.

The run may still be going on. The last line on standard output is the path of evaluations/STEP.json, which holds what
every such command has found.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import chz

from launch import command_line
from launch.generate import runs, write_by
from mmjax import config
from mmjax.errors import UserError
from mmjax.files import explained, write_atomic
from mmjax.generators import Decoding

FOLDER = "evaluations"
SHOWN = 16  # of every kind of thing


@chz.chz
class Evaluation:
    """Whose model is evaluated, on what, and who reads what it makes."""

    run_dir: str = chz.field(doc="the run whose model it is")
    split: str = chz.field(default="test", doc="which of the source's splits")
    step: int | None = chz.field(default=None, doc="the checkpoint; None: the newest")
    given: str | None = chz.field(
        default=None, doc="the modalities that the model may see, separated by commas; None: all"
    )
    readers: Mapping[str, str] = chz.field(
        default_factory=dict, doc="finished runs that read what is made, by its modality"
    )
    examples: int | None = chz.field(
        default=None, doc="of pictures and sounds, so many evenly spread are made; None: all"
    )
    decoding: Decoding | None = chz.field(
        default=None, doc="how texts, and the codes of pictures, are written; None: as the run does"
    )
    seed: int = chz.field(default=0, doc="what draws follow from")

    @chz.validate
    def _some(self) -> None:
        if self.examples is not None and self.examples < 1:
            raise ValueError("examples must be at least 1")
        if self.seed < 0:
            raise ValueError("seed must not be negative")


def evaluate(request: Evaluation) -> Path:
    """Evaluate as asked; returns the path of the results."""
    import jax
    from jax.sharding import NamedSharding

    from mmjax.compilation import cache_compilations
    from mmjax.evaluation.evaluator import Evaluator
    from mmjax.evaluation.gallery import show_raw, write_gallery
    from mmjax.evaluation.generation import evaluate_generation, makers
    from mmjax.evaluation.reader import Reader
    from mmjax.sharding.mesh import MeshShape, choose_rules
    from mmjax.training.restore import restore_model

    experiment = config.read(request.run_dir)
    fingerprint = config.fingerprint(experiment)
    outputs = [name for name, part in experiment.model.outputs.items() if part is not None]
    experiment = chz.replace(experiment, model=write_by(request.decoding, experiment.model, outputs))
    encoders = [name for name, part in experiment.model.encoders.items() if part is not None]
    given = choose(request.given, encoders)
    data = experiment.data.bind(experiment.data_dir, request.run_dir)
    data.open(experiment.data_dir, request.split)
    cache_compilations(experiment.data_dir)
    mesh = MeshShape().build(jax.local_devices())
    with jax.set_mesh(mesh):
        rules = choose_rules("data", mesh)
        sharding = NamedSharding(mesh, rules.spec("batch"))
        size = -(-experiment.train.batch_size // mesh.size) * mesh.size
        readers = {target: Reader(run, target, rules=rules) for target, run in request.readers.items()}
        model, step = restore_model(experiment, request.run_dir, data.features, rules, request.step)
        model = model.blindfold(set(encoders) - set(given))
        told = {name: part for name, part in experiment.model.outputs.items() if part is not None and model.sees(name)}
        able = makers(data.features, told)
        for target in readers:
            if all(output.target != target for output in able.values()):
                made = ", ".join(output.target for output in able.values()) or "no picture and no sound"
                raise UserError(f"readers.{target} has nothing to read: the run makes {made} of {', '.join(given)}")
        evaluator = Evaluator(data, experiment.data_dir, size, sharding=sharding, rules=rules)
        chance = request.decoding is not None and request.decoding.temperature > 0
        (metrics,) = evaluator.evaluate(model, request.split, seed=request.seed if chance else None)
        metrics = {name: value for name, value in metrics.items() if name.split("/")[1] in told}
        generated = evaluate_generation(
            model,
            able,
            data,
            experiment.data_dir,
            request.split,
            size,
            readers=readers,
            sharding=sharding,
            rules=rules,
            examples=request.examples,
            seed=request.seed,
        )
    metrics |= {f"{request.split}/{name}": value for name, value in generated.metrics.items()}
    label = request.split if request.given is None else f"{request.split} given {', '.join(given)}"
    found = {"fingerprint": fingerprint, "step": step, "readers": generated.readers}
    folder = Path(request.run_dir).expanduser() / FOLDER
    pieces = {
        f"{name}-{kind}": [show_raw(raw) for raw in raws[:SHOWN]]
        for name, kinds in generated.raws.items()
        for kind, raws in kinds.items()
        if raws
    }
    if pieces:
        place = folder / str(step) / "-".join([request.split, *(given if request.given else [])])
        facts = {f"reader of {target}": reader for target, reader in generated.readers.items()} | metrics
        write_gallery(place, f"{experiment.name}, step {step}: {label}", facts, {}, pieces)
    return _add(folder / f"{step}.json", label, found | {"metrics": metrics})


def choose(given: str | None, encoders: Sequence[str]) -> list[str]:
    """The modalities that `given` names, or all. Raises UserError for one that the run does not read."""
    chosen = [*encoders] if given is None else [name for word in given.split(",") if (name := word.strip())]
    for name in chosen:
        if name not in encoders:
            raise UserError(f"given={given} names {name}, and the run reads {', '.join(encoders)}")
    if not chosen:
        raise UserError(f"given={given} names nothing; the run reads {', '.join(encoders)}")
    return chosen


def _add(path: Path, label: str, found: Mapping[str, Any]) -> Path:
    """Puts what was found beside what the file already holds."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            before = json.loads(path.read_text()) if path.exists() else {}
        except ValueError as error:
            raise UserError(f"{path} is no valid JSON, perhaps cut short; move it away, and ask again") from error
    return write_atomic(path, json.dumps({**before, label: found}, indent=2, allow_nan=False) + "\n")


SUBJECTS = command_line.Subjects("run_dir", runs, lambda run_dir: Evaluation(run_dir=run_dir), others=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return command_line.main(evaluate, "Evaluate a run's model on a held-out split.", argv, SUBJECTS)


if __name__ == "__main__":
    sys.exit(main())
