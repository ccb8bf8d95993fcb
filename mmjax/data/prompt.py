"""What somebody gives a trained model to go on: a text or files, as a batch of one example."""

import os
from collections.abc import Mapping

from mmjax.data.clean import BadInput, clean_text
from mmjax.data.inputs import Input, TextInput
from mmjax.data.loader import empty_batch, set_example
from mmjax.errors import UserError
from mmjax.files import local_path, read_regular
from mmjax.types import Batch

# Bytes of the largest file that is read.
LARGEST = 2**28


def make_prompt(inputs: Mapping[str, Input], given: Mapping[str, str]) -> Batch:
    """A batch of one example that has the features in `given`, read as in an evaluation, and no others.

    What is given for a `TextInput` is the text itself, for any other input the path of a file. Pictures of any size and
    mode and recordings of any rate and number of channels become what the input wants; recordings are cut as in
    training, texts are not.

    Raises:
        UserError: a file cannot be read, or what is given cannot be used.
    """
    batch = empty_batch({name: input.feature for name, input in inputs.items()}, 1)
    for name, said in given.items():
        input = inputs[name]
        try:
            if isinstance(input, TextInput):
                _check_text(input, clean_text(said))
            values, mask = input.read(said if isinstance(input, TextInput) else read_file(said), None)
        except BadInput as error:
            where = name if isinstance(input, TextInput) else f"{name}:{said}"
            raise UserError(f"{where} cannot be used: {error}") from error
        set_example(batch, 0, name, values, mask)
    return batch


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The content of a file that somebody gives. Raises BadInput where it cannot be read."""
    if not str(path):
        raise BadInput("no file is named")
    try:
        return read_regular(local_path(path), LARGEST)
    except (OSError, UserError) as error:
        raise BadInput(getattr(error, "strerror", None) or str(error)) from error


def _check_text(input: TextInput, text: str) -> None:
    """Raises BadInput for a text that the model would see less of than was given."""
    count = len(input.tokenizer.encode(text))
    if count > input.length:
        raise BadInput(f"the text has {count} tokens, its end included, and this model reads {input.length}")
    # Byte pairs hold every byte, but a tokenizer that was given may lack some.
    lost = [
        sign for sign in dict.fromkeys(text) if not sign.isspace() and not input.decode(input.tokenizer.encode(sign))
    ]
    if lost:
        raise BadInput(f"this model's tokenizer has nothing for {' '.join(lost[:10])}")
