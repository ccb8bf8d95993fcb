"""Made pictures or sounds against real ones, through the eyes of a reader."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from mmjax.errors import UserError
from mmjax.evaluation.distributions import distribution_metrics
from mmjax.evaluation.reader import Reading
from mmjax.evaluation.statistic import Statistic
from mmjax.evaluation.texts import text_statistics


class Asked(NamedTuple):
    """The classes that E examples were made to show, in S slots each, and which of the slots mean anything."""

    classes: Int[np.ndarray, "E S"]
    mask: Bool[np.ndarray, "E S"]


class Judged(NamedTuple):
    """Figures of distributions and of examples by name, and the reader whose features and answers they rest on."""

    reader: str
    distributions: dict[str, float]
    statistics: dict[str, Statistic]


def judge(made: Reading, real: Reading, asked: Mapping[str, Asked | Sequence[str]]) -> Judged:
    """What a reader's two readings say of what was made: see `distribution_metrics` and `read_back`.

    Raises:
        UserError: for too few examples, or made ones that are not finite.
        ValueError: where the readings are those of different readers.
    """
    if made.reader != real.reader:
        raise ValueError(f"what {made.reader} and {real.reader} read cannot be compared")
    return Judged(made.reader, distribution_metrics(real.features, made.features), read_back(made, asked))


def read_back(made: Reading, asked: Mapping[str, Asked | Sequence[str]]) -> dict[str, Statistic]:
    """Whether what was made shows what was asked for: "read_back/OUTPUT/METRIC" by output of the reader.

    Of classes, `accuracy` is the share of the slots asked for in which the reader finds the class asked for, and
    `exact` that of the examples in which it does so in all; of texts, see `text_statistics`. Nothing is said of
    outputs of which nothing was asked. What it reads of the real examples bounds what can be expected.

    Raises:
        UserError: where something was asked that the reader does not read.
    """
    answers = made.answers
    metrics: dict[str, Statistic] = {}
    for output, wanted in asked.items():
        if output not in answers and output not in made.texts:
            raise UserError(f"{made.reader} reads no {output}: it reads {', '.join([*answers, *made.texts])}")
        if not isinstance(wanted, Asked):
            found = text_statistics(made.texts[output], wanted) if wanted else {}
        elif wanted.mask.any():
            right = (answers[output] == wanted.classes) & wanted.mask
            counts = wanted.mask.sum(1)
            exact = (counts > 0) & (right.sum(1) == counts)
            found = {"accuracy": Statistic.ratio(right.sum(1), counts), "exact": Statistic.ratio(exact, counts > 0)}
        else:
            found = {}
        metrics |= {f"read_back/{output}/{name}": value for name, value in found.items()}
    return metrics
