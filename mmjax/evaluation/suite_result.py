"""The result of a suite: its metrics with their intervals, and the sections of its page."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from mmjax.metrics.statistics import Statistic
from mmjax.reports.page import Section


@dataclasses.dataclass(frozen=True)
class Metric:
    """A value with its 95% interval (None where it has none) and the number of examples that it is about."""

    value: float
    low: float | None
    high: float | None
    examples: int


@dataclasses.dataclass(frozen=True)
class SuiteResult:
    """Metrics by "output/metric", and sections of the page.

    `statistics` are formulas of examples, `figures` all others. `readers` are the judge models that they depend on, by
    the modality judged.
    """

    statistics: Mapping[str, Statistic] = dataclasses.field(default_factory=dict)
    figures: Mapping[str, Metric] = dataclasses.field(default_factory=dict)
    sections: Sequence[Section] = ()
    readers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def clustered(self, clusters: Int[np.ndarray, "N"] | None) -> "SuiteResult":
        """The same with intervals over clusters of a split's N examples, all or evenly spread ones of it."""
        if clusters is None:
            return self

        def clustered(statistic: Statistic) -> Statistic:
            count = len(statistic.columns)
            return dataclasses.replace(statistic, clusters=clusters[np.arange(count) * len(clusters) // count])

        return dataclasses.replace(self, statistics={name: clustered(each) for name, each in self.statistics.items()})
