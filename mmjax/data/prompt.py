"""Prompts for a trained model: a text or files as a batch of one example."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.data.batching.host_batch import empty_batch, set_example
from mmjax.data.clean import BadInput, decode_text
from mmjax.data.inputs import Input, TextInput
from mmjax.errors import UserError
from mmjax.files import read_regular, to_path
from mmjax.types import Batch

# Bytes of the largest file that is read.
LARGEST = 2**28


def make_prompt(inputs: Mapping[str, Input], prompt: Mapping[str, str]) -> Batch:
    """A batch of one example with the features in `prompt` only, read as in an evaluation.

    The value for a `TextInput` is the text itself, for any other input the path of a file. Images of any size and mode
    and recordings of any rate and number of channels are converted; recordings are cut as in training, texts are not.

    Raises:
        UserError: a file cannot be read, or a value cannot be used.
    """
    batch = empty_batch({name: input.feature for name, input in inputs.items()}, 1)
    for name, value in prompt.items():
        input = inputs[name]
        try:
            check_text(input, value)
            values, mask = input.read(value if isinstance(input, TextInput) else read_file(value), None)
        except BadInput as error:
            where = name if isinstance(input, TextInput) else f"{name}:{value}"
            raise UserError(f"{where} cannot be used: {error}") from error
        set_example(batch, 0, name, values, mask)
    return batch


def read_file(path: str | Path) -> bytes:
    """The content of a prompt file; raises BadInput where it cannot be read."""
    if not str(path):
        raise BadInput("no file is named")
    try:
        return read_regular(to_path(path), LARGEST)
    except (OSError, UserError) as error:
        raise BadInput(getattr(error, "strerror", None) or str(error)) from error


def check_text(input: Input, raw: Any) -> None:
    """Raises BadInput for a text that the model would not see completely."""
    if not isinstance(input, TextInput):
        return
    text = decode_text(raw)
    count = len(input.tokenizer.encode(text))
    if count > input.length:
        raise BadInput(f"the text has {count} tokens, its end included, and this model reads {input.length}")
    # Byte pairs hold every byte, but a tokenizer that was given may lack some.
    lost = [
        sign for sign in dict.fromkeys(text) if not sign.isspace() and not input.decode(input.tokenizer.encode(sign))
    ]
    if lost:
        raise BadInput(f"this model's tokenizer has nothing for {' '.join(lost[:10])}")
