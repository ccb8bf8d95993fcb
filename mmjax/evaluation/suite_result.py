"""What a suite of evaluations finds: figures of examples, figures of the whole, and what a page shows besides."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from mmjax.metrics.statistics import Statistic
from mmjax.reports.page import Section


@dataclasses.dataclass(frozen=True)
class Metric:
    """A figure with its 95% interval (None where it has none) and the number of examples that it is about."""

    value: float
    low: float | None
    high: float | None
    examples: int


@dataclasses.dataclass(frozen=True)
class SuiteResult:
    """By "output/figure": what is a formula of examples, what has an interval of its own, what is of the whole split
    with the number of its examples; and parts of the page."""

    statistics: Mapping[str, Statistic] = dataclasses.field(default_factory=dict)
    figures: Mapping[str, Metric] = dataclasses.field(default_factory=dict)
    sections: Sequence[Section] = ()

    def clustered(self, clusters: Int[np.ndarray, "N"] | None) -> "SuiteResult":
        """The same with intervals over clusters of a split's N examples, all or evenly spread ones of which count."""
        if clusters is None:
            return self

        def clustered(statistic: Statistic) -> Statistic:
            count = len(statistic.columns)
            return dataclasses.replace(statistic, clusters=clusters[np.arange(count) * len(clusters) // count])

        return dataclasses.replace(self, statistics={name: clustered(each) for name, each in self.statistics.items()})
