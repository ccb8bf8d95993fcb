"""Have a trained model make something: `python -m launch.generate RUN_DIR from=text:"a red circle" [to=image] [n=8]`.

The run may be finished or still going on; its data set need not be there. The last line on standard output is the path
of generation.json, which lists what was made.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import chz

from mmjax.config import experiment_file
from mmjax.data.inputs import Input, SpectrogramInput
from mmjax.errors import UserError
from mmjax.files import explained, local_path, make_folder, read_json, write_atomic
from mmjax.generators import CodeDecoder, Decoding, TextDecoder, Vocoder
from mmjax.layers.output import Output
from mmjax.model import Model
from mmjax.types import PADDING, Batch, Feature, Spectrogram, Text

from . import command_line
from .huge_pages import prefer_huge_pages

RESULT = "generation.json"
# So many of everything can be drawn at once.
MOST = 65536


@chz.chz
class Generation:
    """What is made of what, by whom, and where it goes."""

    run_dir: str = chz.field(doc="the run whose model it is")
    from_: str | None = chz.field(
        default=None,
        doc="what is given: text:WORDS, image:FILE or speech:FILE by the run's own names, or several of these,"
        " separated by commas; None: nothing, and `to` must say what is made of it",
    )
    to: str | None = chz.field(
        default=None, doc="modalities or outputs, separated by commas; None: all that can be made and are not given"
    )
    n: int = chz.field(default=8, doc="how many of each are drawn")
    seed: int = chz.field(default=0, doc="what the draws follow from")
    step: int | None = chz.field(default=None, doc="the checkpoint; None: the newest")
    decoding: Decoding | None = chz.field(
        default=None,
        doc="how texts, and the codes of pictures, are written: decoding.temperature, decoding.top_k, decoding.top_p,"
        " decoding.beams; None: as the run does",
    )
    vocoder: str | None = chz.field(
        default=None, doc="the run whose Vocoder makes sound of spectra like these; None: Griffin-Lim"
    )
    out: str = chz.field(
        default=None,
        x_type=str | None,
        converter=chz.mungers.if_none(lambda request: str(Path(request.run_dir, "generated"))),
        doc="the folder where everything goes, in place of what an earlier request made there",
    )

    @chz.validate
    def _some(self) -> None:
        if not 1 <= self.n <= MOST:
            raise ValueError(f"n must lie between 1 and {MOST}")
        if self.seed < 0:
            raise ValueError("seed must not be negative")


def generate(request: Generation) -> Path:
    """Make what is asked for; returns the path of the list of what was made."""
    from mmjax.compilation import cache_compilations
    from mmjax.data.prompt import make_prompt
    from mmjax.reports.gallery import show_given, show_made, write_gallery

    experiment = experiment_file.read(request.run_dir)
    given = sources(request.from_, experiment.model)
    outputs = choose(experiment.model, request.to, given)
    folder = local_path(request.out)
    earlier = made_earlier(folder)
    data = experiment.data.fit_tokenizers(experiment.data_dir, request.run_dir)
    prompt = make_prompt(data.inputs, given)
    cache_compilations(experiment.data_dir)
    writing = chz.replace(experiment, model=write_by(request.decoding, experiment.model, outputs))
    step, predictions, seconds = _predict(request, writing, data.features, prompt, outputs)
    if request.vocoder is not None:
        seconds += _voice(request.vocoder, data.inputs, predictions, outputs)
    start = time.perf_counter()
    made = {name: show_made(data.inputs[target], predictions[name]) for name, target in outputs.items()}
    seconds += time.perf_counter() - start
    about = {"seed": request.seed, "step": step, "fingerprint": experiment_file.fingerprint(experiment)}
    facts = {**{f"from {name}": said for name, said in given.items()}, **about}
    for name in earlier:
        (folder / name).unlink(missing_ok=True)
    _write_list(folder, {"files": {}, **about})  # so that the folder is known for what it is, whatever happens now
    files = write_gallery(folder, f"Made by {experiment.name}", facts, show_given(data.inputs, prompt), made)
    answers = {
        name: [piece.answer for piece in pieces] for name, pieces in made.items() if pieces[0].answer is not None
    }
    path = _write_list(folder, {"prompt": given, "files": files, "answers": answers, **about})
    counts = {name: len(pieces) for name, pieces in made.items()}
    for line in _remarks(data.features, predictions, outputs, counts, seconds):
        print(line, file=sys.stderr)
    return path


def made_earlier(folder: Path) -> list[str]:
    """The files that an earlier request has made in a folder, which may be new.

    Raises UserError where it is none, or holds something and no list of an earlier request.
    """
    from mmjax.reports.gallery import SHEET

    place = next(path for path in (folder, *folder.parents) if path.exists())
    with explained(folder):
        empty = not any(place.iterdir())
    if place != folder or empty:
        return []
    try:
        listed = [name for files in read_json(folder / RESULT)["files"].values() for name in files]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise UserError(
            f"out={folder} holds other things than what an earlier request made; choose a new or an empty folder"
        ) from None
    names = [name for name in listed if isinstance(name, str) and re.fullmatch(r"[\w-]+-\d+\.(png|wav|txt)", name)]
    return [*names, SHEET]


def _write_list(folder: Path, whole: dict[str, Any]) -> Path:
    with make_folder(folder):
        return write_atomic(folder / RESULT, json.dumps(whole, indent=2, ensure_ascii=False) + "\n")


def sources(said: str | None, model: Model) -> dict[str, str]:
    """What is given, by modality: `image:photo.png,text:red, or so` is two. Raises UserError naming what is read."""
    if said is None:
        return {}
    readable = _readable(model)
    # A comma separates only where a modality's name and a colon follow: texts have commas too.
    parts = re.split(f",(?=(?:{'|'.join(map(re.escape, readable))}):)", said)
    given: dict[str, str] = {}
    for part in parts:
        name, colon, value = part.partition(":")
        if colon and name.isidentifier() and name not in readable:
            raise UserError(f"from={part}: the run does not read {name}; it reads {', '.join(readable)}")
        if not colon or name not in readable:
            raise UserError(
                f"from={part} must begin with what the run reads and a colon, such as from={readable[0]}:...; it reads "
                f"{', '.join(readable)}"
            )
        if name in given:
            raise UserError(f"from={said} gives {name} twice; give it once")
        given[name] = value
    return given


def _readable(model: Model) -> list[str]:
    return [name for name, encoder in model.encoders.items() if encoder is not None]


def choose(model: Model, to: str | None, given: Collection[str]) -> dict[str, str]:
    """The outputs that make what is asked for, each with what it makes. Raises UserError, naming what can be made."""
    makers = {
        name: output
        for name, output in model.outputs.items()
        if output is not None and output.target_feature is not None
    }
    if not given and to is None:
        raise UserError(
            f"say what is given, such as from={_readable(model)[0]}:..., or what is to be made of nothing by to=; "
            f"{_can(makers)}"
        )
    able = {name: str(output.target_feature) for name, output in makers.items() if _told(output, given)}
    if to is None:
        able = {name: target for name, target in able.items() if target not in given}
        if not able:
            raise UserError(f"this run makes nothing from {_list(given)}; {_can(makers)}")
        return able
    chosen: dict[str, str] = {}
    for wanted in filter(None, (word.strip() for word in to.split(","))):
        found = {
            name: str(output.target_feature)
            for name, output in makers.items()
            if wanted in (name, output.target_feature)
        }
        if not found:
            raise UserError(f"to={wanted}: this run does not make it; {_can(makers)}")
        if not found.keys() & able.keys():
            raise UserError(f"to={wanted}: what makes it is not shown {_list(given)}; give something else by from=")
        chosen |= {name: target for name, target in found.items() if name in able}
    if not chosen:
        raise UserError(f"to={to} names nothing; {_can(makers)}")
    return chosen


def _told(output: Output, given: Collection[str]) -> bool:
    """Whether an output sees any of what is given; where nothing is, none needs to."""
    return not given or not set(given) <= set(output.hidden_modalities)


def _can(makers: Mapping[str, Output]) -> str:
    return f"it can make {_list(dict.fromkeys(str(output.target_feature) for output in makers.values()))}"


def _list(names: Collection[str]) -> str:
    return ", ".join(names) or "nothing"


def write_by(decoding: Decoding | None, model: Model, outputs: Collection[str]) -> Model:
    """The model whose chosen outputs write texts, or codes, so. Raises UserError where none of them writes any."""
    if decoding is None:
        return model
    writers = {name: output for name, output in model.outputs.items() if isinstance(output, TextDecoder | CodeDecoder)}
    if not writers.keys() & set(outputs):
        raise UserError(
            f"decoding says how texts and codes are written, and nothing of {_list(outputs)} is; leave it out"
        )
    replaced = {name: chz.replace(writer, decoding=decoding) for name, writer in writers.items()}
    return chz.replace(model, outputs={**model.outputs, **replaced})


def _predict(
    request: Generation,
    experiment: experiment_file.Experiment,
    features: dict[str, Feature],
    prompt: Batch,
    outputs: Collection[str],
) -> tuple[int, dict[str, dict[str, Any]], float]:
    """The checkpoint's step, what the chosen outputs predict of as many copies of the prompt as asked for, and the
    seconds that it took, compiled."""
    import jax
    import numpy as np

    from mmjax.checkpoint.restore import restore_model
    from mmjax.compilation import jit_once
    from mmjax.sharding.mesh import MeshShape, choose_rules

    mesh = MeshShape(data=1).build(jax.local_devices()[:1])
    with jax.set_mesh(mesh):
        rules = choose_rules(experiment.rules, mesh)
        model, step = restore_model(
            experiment.model, request.run_dir, features, rules, request.step, ema=experiment.train.ema is not None
        )
        copies = jax.tree.map(lambda array: np.repeat(array, request.n, 0), prompt)
        batch = jax.device_put(copies, rules.spec("batch"))

        @jit_once
        def predict(model: Any, batch: Batch, key: jax.Array) -> dict[str, dict[str, jax.Array]]:
            # What is left out here is not computed, and what is made does not depend on what else is asked for.
            return {name: said for name, said in model.predict(batch, key).items() if name in outputs}

        return step, *_timed(predict, model, batch, jax.random.key(request.seed))


def _voice(
    run_dir: str, inputs: Mapping[str, Input], predictions: Mapping[str, dict[str, Any]], outputs: Mapping[str, str]
) -> float:
    """Adds the `samples` that the vocoder of a run makes of every predicted spectrum; the seconds that it took."""
    import jax

    from mmjax.checkpoint.restore import restore_model
    from mmjax.compilation import jit_once
    from mmjax.sharding.mesh import MeshShape, choose_rules

    spoken = {name: target for name, target in outputs.items() if isinstance(inputs[target], SpectrogramInput)}
    if not spoken:
        raise UserError(f"vocoder={run_dir} makes sound of spectra, and {_list(outputs)} is none; leave it out")
    experiment = experiment_file.read(run_dir)
    found = {name: output for name, output in experiment.model.outputs.items() if isinstance(output, Vocoder)}
    if not found:
        raise UserError(f"vocoder={run_dir} has no output of the kind Vocoder; give a run that was trained as one")
    name, vocoder = next(iter(found.items()))
    data = experiment.data.fit_tokenizers(experiment.data_dir, run_dir)
    theirs = data.inputs[vocoder.mel]
    mesh = MeshShape(data=1).build(jax.local_devices()[:1])
    with jax.set_mesh(mesh):
        rules = choose_rules(experiment.rules, mesh)
        model, _ = restore_model(experiment.model, run_dir, data.features, rules, ema=experiment.train.ema is not None)
        decode = jit_once(lambda model, values, mask: model.outputs[name].decode(values, mask))
        seconds = 0.0
        for output, target in spoken.items():
            ours = inputs[target]
            assert isinstance(ours, SpectrogramInput)
            assert isinstance(theirs, SpectrogramInput)
            differing = [key for key, value in ours.scale.items() if theirs.scale[key] != value]
            if differing:
                raise UserError(
                    f"vocoder={run_dir} has learned from other spectra than {target} ({', '.join(differing)} differ); "
                    "give one that was trained on the same"
                )
            made = predictions[output]
            given = jax.device_put((made["values"], _real_frames(made)), rules.spec("batch"))
            made["samples"], taken = _timed(decode, model, *given)
            seconds += taken
    return seconds


def _real_frames(made: Mapping[str, Any]) -> Any:
    """Which frames of predicted spectra are real: all, where nothing else is said."""
    import numpy as np

    return made.get("mask", np.ones(made["values"].shape[:2], bool))


def _timed(function: Callable, *arguments: Any) -> tuple[Any, float]:
    """What a jitted function returns, on the host, and the seconds it took, the compilation left out."""
    import jax

    compiled = function.lower(*arguments).compile()
    start = time.perf_counter()
    returned = jax.device_get(compiled(*arguments))
    return returned, time.perf_counter() - start


def _remarks(
    features: Mapping[str, Feature],
    predictions: Mapping[str, dict[str, Any]],
    outputs: Mapping[str, str],
    counts: Mapping[str, int],
    seconds: float,
) -> Iterator[str]:
    """Which sounds are empty, and the rates at which what was made has come about, all of it together.

    Of every output as many examples were made as `counts` says, where all were the same one.
    """
    tokens, sound = 0, 0.0
    for name, target in outputs.items():
        feature, made = features[target], predictions[name]
        if isinstance(feature, Text):
            tokens += int((made["ids"][: counts[name]] != PADDING).sum())
        if isinstance(feature, Spectrogram):
            frames = _real_frames(made)[: counts[name]].sum(1)
            sound += float(frames.sum()) * feature.seconds
            silent = [f"{name}-{number}" for number, count in enumerate(frames, 1) if count == 0]
            if silent:
                yield f"{', '.join(silent)}: the model says nothing, the sound is empty"
    rates = [f"{tokens} tokens, {tokens / seconds:.3g} a second"] if tokens else []
    rates += [f"{sound:.3g} s of sound, real-time factor {seconds / sound:.2g}"] if sound else []
    told = "; ".join(rates)
    yield f"made in {seconds:.3g} s" + (f": {told}" if told else "")


def runs() -> dict[str, str]:
    """The run directories where runs are by default."""
    return {str(path.parent): "" for path in sorted(Path("runs").glob(f"*/{experiment_file.FILE}"))}


SUBJECTS = command_line.Subjects("run_dir", runs, lambda run_dir: Generation(run_dir=run_dir), others=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return command_line.main(generate, "Have a trained model make something.", argv, SUBJECTS)


if __name__ == "__main__":
    prefer_huge_pages()
    sys.exit(main())
