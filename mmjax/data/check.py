"""A look at a few examples of a split before anything is compiled: whether the inputs can read them at all."""

from collections.abc import Mapping
from typing import Any

from mmjax.data.clean import BadInput, WrongKind, read_example
from mmjax.data.inputs import Input
from mmjax.data.sources.base import Records
from mmjax.errors import UserError

EXAMPLES = 32  # are looked at, evenly spread, for their fields; single ones may lack one that was damaged
VALUES = 8  # of each field are read


def check_inputs(inputs: Mapping[str, Input], records: Records, split: str) -> None:
    """Raise UserError for an input whose field no example has, or that can read none of the values looked at.

    A value that is of another kind than the input reads, such as a float where labels are wanted, is enough.
    """
    examples: dict[str, dict[str, Any]] = {}
    damage = "they are damaged"
    for index in range(0, len(records), max(1, len(records) // EXAMPLES)):
        try:
            examples[records.id(index)] = read_example(records, index)
        except BadInput as error:
            damage = str(error)
    if not any(examples.values()):
        raise UserError(f"the examples of the split {split} cannot be read: {damage}; prepare the data again")
    for name, input in inputs.items():
        _check_input(name, input, examples, split)


def _check_input(name: str, input: Input, examples: Mapping[str, dict[str, Any]], split: str) -> None:
    field = input.field or name
    if not any(field in example for example in examples.values()):
        there = sorted({field for example in examples.values() for field in example})
        raise UserError(
            f"data.inputs.{name} reads the field {field}, which no example of the split {split} has (they have "
            f"{', '.join(there)}); set data.inputs.{name}=None or data.inputs.{name}.field"
        )
    values = [(id, example[field]) for id, example in examples.items() if example.get(field) is not None][:VALUES]
    failures: list[tuple[str, BadInput]] = []
    for id, raw in values:
        try:
            input.read(raw, None)
        except BadInput as error:
            failures.append((id, error))
    wrong = [failure for failure in failures if isinstance(failure[1], WrongKind)]
    if wrong or (failures and len(failures) == len(values)):
        id, reason = (wrong or failures)[0]
        raise UserError(
            f"data.inputs.{name} cannot read the field {field} of {id} in the split {split}: {reason}; correct the "
            f"data, or set data.inputs.{name}.field or another class of data.inputs.{name}"
        )
