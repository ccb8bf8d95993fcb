"""What a suite of evaluations finds: figures of examples, figures of the whole, and what a page shows besides."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from mmjax.evaluation.statistic import Statistic


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure with its 95% interval (None where it has none) and the number of examples that it is about."""

    value: float
    low: float | None
    high: float | None
    examples: int


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns with a heading each, the first of which names the rows."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Card:
    """Something about one example: pictures as data URIs with what they are, words each with a weight in [-1, 1], and
    lines of text."""

    title: str
    pictures: Sequence[tuple[str, str]] = ()
    words: Sequence[tuple[str, Sequence[tuple[str, float]]]] = ()
    lines: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page, in this order: what it is about, tables, drawings as SVG, cards, and text as it stands.

    Drawings lie side by side, or, where they are `wide`, one below the other.
    """

    title: str
    about: str = ""
    tables: Sequence[Table] = ()
    drawings: Sequence[str] = ()
    cards: Sequence[Card] = ()
    text: str = ""
    wide: bool = False


@dataclasses.dataclass(frozen=True)
class Findings:
    """By "output/figure": what is a formula of examples, what has an interval of its own, what is of the whole split
    with the number of its examples; and parts of the page."""

    statistics: Mapping[str, Statistic] = dataclasses.field(default_factory=dict)
    figures: Mapping[str, Figure] = dataclasses.field(default_factory=dict)
    sections: Sequence[Section] = ()

    def clustered(self, clusters: Int[np.ndarray, "N"] | None) -> "Findings":
        """The same with intervals over clusters of a split's N examples, all or evenly spread ones of which count."""
        if clusters is None:
            return self

        def clustered(statistic: Statistic) -> Statistic:
            count = len(statistic.columns)
            return dataclasses.replace(statistic, clusters=clusters[np.arange(count) * len(clusters) // count])

        return dataclasses.replace(self, statistics={name: clustered(each) for name, each in self.statistics.items()})
