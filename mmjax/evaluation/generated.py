"""Made pictures or sounds against real ones, through the eyes of a reader."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from mmjax.errors import UserError
from mmjax.evaluation.distributions import distribution_metrics
from mmjax.evaluation.reader import Reading


class Asked(NamedTuple):
    """The classes that E examples were made to show, in S slots each, and which of the slots mean anything."""

    classes: Int[np.ndarray, "E S"]
    mask: Bool[np.ndarray, "E S"]


class Judged(NamedTuple):
    """Figures by name, and the name of the reader whose features and answers they rest on."""

    reader: str
    metrics: dict[str, float]


def judge(made: Reading, real: Reading, asked: Mapping[str, Asked]) -> Judged:
    """What a reader's two readings say of what was made: see `distribution_metrics` and `read_back`.

    Raises:
        UserError: for too few examples, or made ones that are not finite.
        ValueError: where the readings are those of different readers.
    """
    if made.reader != real.reader:
        raise ValueError(f"what {made.reader} and {real.reader} read cannot be compared")
    return Judged(made.reader, distribution_metrics(real.features, made.features) | read_back(made, asked))


def read_back(made: Reading, asked: Mapping[str, Asked]) -> dict[str, float]:
    """Whether what was made shows what was asked for: "read_back/OUTPUT/accuracy" by output of the reader.

    That is the share of the slots asked for in which the reader finds the class asked for; nothing is said of outputs
    of which nothing was asked. What it reads of the real examples bounds what can be expected.

    Raises:
        UserError: where something was asked that the reader does not read.
    """
    answers = made.answers
    metrics = {}
    for output, (classes, mask) in asked.items():
        if output not in answers:
            raise UserError(f"{made.reader} reads no {output}: it reads {', '.join(answers)}")
        if mask.any():
            metrics[f"read_back/{output}/accuracy"] = float((answers[output] == classes)[mask].mean())
    return metrics
