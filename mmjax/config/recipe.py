"""The text of an experiment for a data set, from what its fields are."""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import chz
import numpy as np

from mmjax.buckets import is_remote
from mmjax.data.sources.base import Source
from mmjax.data.survey import Field
from mmjax.errors import UserError
from mmjax.files import local_path

# Columns of these names say which example it is, not what it is like.
NAMES = ("id", "key", "uid", "uuid", "index", "file", "file_name", "path", "split")
MEDIA = ("image", "audio")
# Of several texts, the first of these names is what is written or aligned.
TEXTS = ("caption", "captions", "text", "transcript", "transcription", "sentence", "title", "name")
TARGETS = ("label", "class", "category", "target", "y")
LONGEST_BYTES = 64  # of a text that is read byte by byte
FASTEST_RATE = 16_000  # samples a second; recordings of higher rates are resampled

TEMPLATE = '''"""{name}: {about}"""

import mmjax as mm


def {name}() -> mm.Experiment:
    """{title}."""
    return mm.Experiment(
        name="{name}",
        data=mm.Data(
            source={source},
            inputs={{
{inputs}
            }},
        ),
        model=mm.Model(
            width=128,
            encoders={{
{encoders}
            }},
            fusion={fusion},
            outputs={{{outputs}}},
        ),
        optimizer=mm.Muon(learning_rate=2e-3, weight_decay=0.05, schedule=mm.Constant(warmup=100)),
        train=mm.Train(steps=1000, batch_size=64, evaluate_every=250),
        checkpoint=mm.Checkpoint(every=250),
    )
'''


@dataclasses.dataclass(frozen=True)
class Part:
    """A feature as an experiment writes it: its name, its input, and its encoder where it can be read."""

    name: str
    input: str
    encoder: str | None = None


def write_recipe(name: str, source: Source, fields: Sequence[Field], task: str | None, target: str | None) -> str:
    """The file of an experiment called `name`. Raises UserError where the fields do not do for the task."""
    useful = [field for field in fields if field.kind in MEDIA or field.name.lower() not in NAMES]
    useful = [field for field in useful if field.kind != "other" and field.distinct != 1]
    task = task or _suggest(useful, target)
    found = _choose_target(task, useful, target)
    read = [field for field in useful if field.kind != "label" and (found is None or field.name != found.name)]
    if task in ("caption", "transcribe"):  # other texts of an example may give away what is to be written
        read = [field for field in read if field.kind in MEDIA]
    about, reads, output = TASKS[task](found, read)
    inputs = [*_parts(reads), *([] if found is None else _targets(found, task))]
    read_names = {part.name for part in _parts(reads)}
    encoders = {part.name: part.encoder for part in inputs if part.encoder is not None and part.name in read_names}
    if not encoders:
        raise UserError(f"task={task}: there is nothing to read but the target; the fields are {_listed(fields)}")
    return TEMPLATE.format(
        name=name,
        about=about,
        title=about[0].upper() + about[1:],
        source=_source(source),
        inputs="\n".join(
            f'                "{part.name}": {part.input},' for part in {p.name: p for p in inputs}.values()
        ),
        encoders="\n".join(f'                "{key}": {encoder},' for key, encoder in encoders.items()),
        fusion="mm.AttentionPool()" if len(encoders) == 1 else "mm.CrossAttention(depth=1)",
        outputs=output,
    )


def _suggest(fields: Sequence[Field], target: str | None) -> str:
    """What data of such fields are usually for."""
    kinds = [field.kind for field in fields]
    wanted = next((field for field in fields if field.name == target), None)
    if wanted is not None:
        tasks = {
            "label": "classify",
            "number": "regress",
            "vector": "regress",
            "image": "generate",
            "audio": "generate",
        }
        return tasks.get(wanted.kind) or ("transcribe" if "audio" in kinds else "caption")
    if any(field.kind == "label" and field.name.lower() in TARGETS for field in fields):
        return "classify"
    if any(field.kind == "number" and field.name.lower() in TARGETS for field in fields):
        return "regress"
    if "text" in kinds and ("image" in kinds or "audio" in kinds):
        return "retrieve" if "image" in kinds else "transcribe"
    if "label" in kinds:
        return "classify"
    if "image" in kinds:
        return "generate"
    raise UserError(f"the fields {_listed(fields)} suggest no task: name one by task and target")


def _choose_target(task: str, fields: Sequence[Field], name: str | None) -> Field | None:
    """The field that a task predicts. Raises UserError where there is none of its kind."""
    kinds = {
        "classify": ("label",),
        "caption": ("text",),
        "transcribe": ("text",),
        "generate": ("image", "audio"),
        "regress": ("number", "vector"),
        "retrieve": (),
    }[task]
    able = [field for field in fields if field.kind in kinds]
    if name is not None:
        chosen = next((field for field in fields if field.name == name), None)
        if chosen is None:
            raise UserError(f"target={name}: there is no such field; the fields are {_listed(fields)}")
        if task == "retrieve":
            raise UserError(f"target={name}: task=retrieve predicts no field; leave out target, or name another task")
        if chosen not in able:
            can = _listed(able) if able else f"none of the fields {_listed(fields)}"
            raise UserError(f"target={name} cannot be what task={task} predicts; {can} can")
        return chosen
    if kinds and not able:
        raise UserError(f"task={task} needs a field that is {' or '.join(kinds)}; the fields are {_listed(fields)}")
    if task == "regress":  # a table's last column, as a rule
        able = able[::-1]
    return _usual(able, (*TARGETS, *TEXTS)) if able else None


def _usual(fields: Sequence[Field], names: Sequence[str]) -> Field:
    """The field with the first of these names, or the first field."""
    return min(fields, key=lambda field: names.index(field.name.lower()) if field.name.lower() in names else len(names))


def _listed(fields: Sequence[Field]) -> str:
    return ", ".join(f"{field.name} ({field.kind})" for field in fields) or "none"


Task = Callable[[Field | None, Sequence[Field]], tuple[str, Sequence[Field], str]]


def _classify(target: Field, fields: Sequence[Field]) -> tuple[str, Sequence[Field], str]:
    return (
        f"which {target.name} an example has, from {_all(fields)}",
        fields,
        f'"{target.name}": mm.Classify(target="{target.name}")',
    )


def _regress(target: Field, fields: Sequence[Field]) -> tuple[str, Sequence[Field], str]:
    scale = ""
    if target.kind == "number":
        mean, deviation = _scale(target)
        scale = f", mean=({mean},), deviation=({deviation},)"
    return (
        f"the {target.name} of an example, from {_all(fields)}",
        fields,
        f'"{target.name}": mm.Regress(target="{target.name}"{scale})',
    )


def _write(target: Field, fields: Sequence[Field]) -> tuple[str, Sequence[Field], str]:
    return (
        f"the {target.name} of an example, written from {_all(fields)}",
        fields,
        f'"{target.name}": mm.TextDecoder(target="{target.name}")',
    )


def _retrieve(target: Field | None, fields: Sequence[Field]) -> tuple[str, Sequence[Field], str]:
    texts = [field for field in fields if field.kind == "text"]
    able = [field for kind in MEDIA for field in fields if field.kind == kind]
    able = [*able[:1], _usual(texts, TEXTS)] if texts else able[:2]
    if len(able) < 2:
        raise UserError(f"task=retrieve needs two of pictures, sounds and texts; the fields are {_listed(fields)}")
    first, second = map(_name, able)
    return (
        f"which {first} and {second} belong together",
        able,
        f'"match": mm.Contrast(first="{first}", second="{second}")',
    )


def _generate(target: Field, fields: Sequence[Field]) -> tuple[str, Sequence[Field], str]:
    texts = [field for field in fields if field.kind == "text"]
    if target.kind == "audio":
        if not texts:
            raise UserError("task=generate makes speech from a text, and there is no text")
        text = _usual(texts, TEXTS)
        made = f'"{_name(target)}": mm.SpeechVae(target="{_name(target)}", text="{_name(text)}")'
        return f"{_name(target)} spoken from {_name(text)}", [text], made
    if texts:
        text = _usual(texts, TEXTS)
        made = f'"{_name(target)}": mm.Vae(target="{_name(target)}")'
        return f"{_name(target)} made from {_name(text)}", [text], made
    made = f'"{_name(target)}": mm.Vae(target="{_name(target)}", conditional=False)'
    return f"new pictures like {_name(target)}", [target], made


TASKS: dict[str, Task] = {
    "classify": _classify,  # type: ignore[dict-item]
    "retrieve": _retrieve,
    "caption": _write,  # type: ignore[dict-item]
    "transcribe": _write,  # type: ignore[dict-item]
    "generate": _generate,  # type: ignore[dict-item]
    "regress": _regress,  # type: ignore[dict-item]
}


def _name(field: Field) -> str:
    """What the feature of a field is called: a column that names files is called by what they hold."""
    return field.kind if field.kind in MEDIA and field.name.lower() in NAMES else field.name


def _all(fields: Sequence[Field]) -> str:
    names = [_name(field) for field in fields if field.kind != "number"]
    numbers = sum(field.kind == "number" for field in fields)
    names += [f"{numbers} numbers"] if numbers else []
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _parts(fields: Sequence[Field]) -> list[Part]:
    """The inputs and encoders of fields; numbers make one vector."""
    numbers = [field for field in fields if field.kind == "number"]
    parts = [_part(field) for field in fields if field.kind != "number"]
    return parts + ([_numbers("numbers", numbers)] if numbers else [])


def _part(field: Field) -> Part:
    name = _name(field)
    given = [f'field="{field.name}"'] if name != field.name else []
    if field.kind == "image":
        side = min(field.percentiles("pixels high")[2], field.percentiles("pixels wide")[2])
        side = 64 if side >= 64 else 32 if side >= 24 else 16
        return Part(name, _call("ImageInput", *given, f"size={side}"), f"mm.ViT(patch={side // 8}, depth=2)")
    if field.kind == "audio":
        rate = int(min(field.percentiles("samples a second")[2], FASTEST_RATE))
        seconds = math.ceil(field.percentiles("seconds")[3] * 10) / 10
        return Part(field.name, f"mm.SpectrogramInput(rate={rate}, seconds={seconds})", "mm.AudioTransformer(depth=2)")
    if field.kind == "text":
        longest = int(field.percentiles("bytes")[3]) + 2
        if longest <= LONGEST_BYTES:
            return Part(field.name, f"mm.TextInput(length={longest})", "mm.TextTransformer(depth=2)")
        length = min(longest // 3, 256)
        return Part(
            field.name,
            f"mm.TextInput(length={length}, tokenizer=mm.Bpe(vocabulary=1024))",
            "mm.TextTransformer(depth=2)",
        )
    size = int(field.percentiles("numbers")[4])
    return Part(field.name, f"mm.VectorInput(size={size})", "mm.FTTransformer(depth=2)")


def _call(name: str, *arguments: str) -> str:
    return f"mm.{name}({', '.join(arguments)})"


def _numbers(name: str, fields: Sequence[Field]) -> Part:
    """Columns of numbers as one vector, each brought to mean 0 and deviation 1."""
    scale = [_scale(field) for field in fields]
    names = _tuple([f'"{field.name}"' for field in fields])
    means, deviations = _tuple([mean for mean, _ in scale]), _tuple([deviation for _, deviation in scale])
    given = f"size={len(fields)}, fields={names}, mean={means}, deviation={deviations}"
    return Part(name, f"mm.VectorInput({given})", "mm.FTTransformer(depth=2)")


def _scale(field: Field) -> tuple[str, str]:
    """Mean and standard deviation of a field's values, as written."""
    values = field.sizes["value"]
    values = values[np.isfinite(values)]
    deviation = float(values.std()) or 1.0
    return f"{float(values.mean()):.4g}", f"{deviation:.4g}"


def _tuple(items: Sequence[str]) -> str:
    return f"({', '.join(items)},)" if len(items) == 1 else f"({', '.join(items)})"


def _targets(field: Field, task: str) -> list[Part]:
    """The input of what is predicted."""
    if task == "classify":
        slots = f"slots={field.most}" if field.most > 1 else ""
        return [Part(field.name, f"mm.LabelInput({slots})")]
    if task == "regress" and field.kind == "number":
        return [Part(field.name, "mm.VectorInput(size=1)")]
    return [dataclasses.replace(_part(field), encoder=_part(field).encoder if task == "generate" else None)]


def _absolute(path: str) -> str:
    return path if is_remote(path) else os.path.abspath(local_path(path))


def _source(source: Source) -> str:
    """A source as Python writes it; its path is made absolute."""
    path = getattr(source, "path", None)
    return _literal(source if path is None else chz.replace(source, path=_absolute(path)))


def _literal(value: Any) -> str:
    """A value as the formatter would write it; of a configuration, what is not by default."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        return _tuple([_literal(part) for part in value])
    if chz.is_chz(value):
        fields = chz.chz_fields(type(value)).items()
        given = {name: getattr(value, name) for name, field in fields if getattr(value, name) != field._default}
        return _call(type(value).__name__, *(f"{name}={_literal(part)}" for name, part in given.items()))
    return repr(value)
