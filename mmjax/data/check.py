"""A check of a few examples before compilation: whether the inputs can read them at all."""

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from mmjax.data.clean import BadInput, WrongType, decode_text, read_example
from mmjax.data.inputs import Input, TextInput
from mmjax.data.sources.base import Records
from mmjax.errors import UserError

EXAMPLES = 32  # are looked at, evenly spread, for their fields; single ones may lack one that was damaged
VALUES = 8  # of each field are read


def check_inputs(inputs: Mapping[str, Input], records: Records, split: str, part: str = "") -> dict[str, list[int]]:
    """The tokens of every sampled text, by text input.

    `part` is the source's name where these are the examples of one in a mixture. Raises UserError for an input whose
    field is missing or unreadable in all sampled examples. A single value of the
    wrong type, such as a float where labels are expected, is enough.
    """
    examples: dict[str, dict[str, Any]] = {}
    damage = "they are damaged"
    for index in range(0, len(records), max(1, len(records) // EXAMPLES)):
        try:
            examples[records.id(index)] = read_example(records, index)
        except BadInput as error:
            damage = str(error)
    where = f"the split {split} of data.source.sources.{part}" if part else f"the split {split}"
    if not any(examples.values()):
        raise UserError(
            f"the examples of {where} cannot be read: {damage}; correct the source, or prepare the data again"
        )
    for name, input in inputs.items():
        _check_input(name, input, examples, where, part)
    texts = {name: input for name, input in inputs.items() if isinstance(input, TextInput)}
    return {name: _count_tokens(name, input, examples.values()) for name, input in texts.items()}


def cut_texts(name: str, input: Input, lengths: list[int]) -> str | None:
    """A line that says how many texts an input cuts, of these lengths in tokens; None where it cuts none."""
    longest = input.feature.shape[0]
    cut = sum(length > longest for length in lengths)
    if not cut:
        return None
    return (
        f"{name}: {cut} of {len(lengths)} sampled texts are longer than {longest} tokens and are cut; raise "
        f"data.inputs.{name}.length to read them whole"
    )


def _count_tokens(name: str, input: TextInput, examples: Iterable[Mapping[str, Any]]) -> list[int]:
    """How many tokens each text that can be read has, the end included."""
    lengths = []
    for example in examples:
        with contextlib.suppress(BadInput):
            raw = input.take(example, name)
            for text in raw if isinstance(raw, list | tuple) else [raw]:
                lengths.append(len(input.tokenizer.encode(decode_text(text))))
    return lengths


def _check_input(name: str, input: Input, examples: Mapping[str, dict[str, Any]], where: str, part: str) -> None:
    fields = input.reads(name)
    missing = [field for field in fields if not any(field in example for example in examples.values())]
    if missing:
        there = sorted({field for example in examples.values() for field in example})
        fix = f"data.inputs.{name}=None or data.inputs.{name}.field"
        if part:
            key = f"data.source.sources.{part}.fields.{missing[0]}"
            fix = f"{key} to the field that it has instead, or {key}=None where it has none"
        raise UserError(
            f"data.inputs.{name} reads the field {missing[0]}, which no example of {where} has (they have "
            f"{', '.join(there)}); set {fix}"
        )
    failures: list[tuple[str, BadInput]] = []
    whole = [(id, each) for id, each in examples.items() if all(each.get(field) is not None for field in fields)]
    for id, example in whole[:VALUES]:
        try:
            input.read(input.take(example, name), None)
        except BadInput as error:
            failures.append((id, error))
    wrong = [failure for failure in failures if isinstance(failure[1], WrongType)]
    if wrong or (failures and len(failures) == len(whole[:VALUES])):
        id, reason = (wrong or failures)[0]
        fix = f"data.inputs.{name}.field or another class of data.inputs.{name}"
        if part:
            fix = f"data.source.sources.{part}.fields.{fields[0]} or data.source.sources.{part}.inputs.{name}"
        raise UserError(
            f"data.inputs.{name} cannot read the field {', '.join(fields)} of {id} in {where}: {reason}; "
            f"correct the data, or set {fix}"
        )
