"""Figures of kinds of examples against those of these examples alone."""

import numpy as np
import pytest
from scipy.stats import fisher_exact

from mmjax.data.inputs import ImageInput, LabelInput
from mmjax.data.loader import Data
from mmjax.data.sources.scenes import Scenes
from mmjax.errors import UserError
from mmjax.evaluation.suites.slices import find_values, slice_metrics
from mmjax.metrics.statistics import Statistic, intervals

RNG = np.random.default_rng(0)
RIGHT = RNG.random(90) < 0.7
SPEAKERS = [("ann", "bob", "")[row % 3] for row in range(90)]


class Table:
    """Records of raw fields."""

    fingerprint = "table"

    def __init__(self, rows):
        self._rows = rows

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        return self._rows[index]

    def id(self, index):
        return f"test/{index}"


def test_each_kind_is_judged_by_itself():
    figure = Statistic.ratio(RIGHT, np.ones(90))
    found = slice_metrics({"digit/accuracy": figure}, {"speaker": SPEAKERS})
    by_hand = {who: RIGHT[[row for row in range(90) if SPEAKERS[row] == who]].mean() for who in ("ann", "bob")}
    for who, accuracy in by_hand.items():
        assert found.statistics[f"digit/speaker={who}/accuracy"].value == pytest.approx(accuracy)
        assert found.statistics[f"digit/speaker={who}/accuracy"].examples == 30
    gap = abs(by_hand["ann"] - by_hand["bob"])
    assert found.statistics["digit/speaker/accuracy_gap"].value == pytest.approx(gap)
    assert set(found.statistics) == {
        *(f"digit/speaker={who}/accuracy" for who in ("ann", "bob")),
        "digit/speaker/accuracy_gap",
    }
    (section,) = found.sections
    assert [row[:2] for row in section.tables[0].rows] == [["ann", "30"], ["bob", "30"], ["largest gap", ""]]


def test_the_interval_of_a_gap_is_about_the_gap():
    """Of many kinds that are alike: the largest gap of a resampling is always larger than that of the data."""
    right = np.tile([1.0, 1.0, 0.0], 80)
    kinds = [f"kind {row // 12}" for row in range(240)]
    found = slice_metrics({"digit/accuracy": Statistic.ratio(right, np.ones(240))}, {"kind": kinds})
    gap = intervals({"gap": found.statistics["digit/kind/accuracy_gap"]})["gap"]
    assert gap.value == pytest.approx(0)
    assert gap.low < 0 < gap.high


def test_a_gap_is_told_from_chance():
    by_chance = slice_metrics({"digit/accuracy": Statistic.ratio(RIGHT, np.ones(90))}, {"speaker": SPEAKERS})
    unfair = np.array([speaker == "ann" or right for speaker, right in zip(SPEAKERS, RIGHT, strict=True)])
    real = slice_metrics({"digit/accuracy": Statistic.ratio(unfair, np.ones(90))}, {"speaker": SPEAKERS})
    p_value = "digit/speaker/accuracy_gap_p_value"
    assert real.figures[p_value].value < 0.05 < by_chance.figures[p_value].value
    # Of two kinds the permutation test is Fisher's.
    table = [[unfair[[s == who for s in SPEAKERS]].sum(), 0] for who in ("ann", "bob")]
    exact = fisher_exact([[right, 30 - right] for right, _ in table]).pvalue
    assert real.figures[p_value].value == pytest.approx(exact, abs=0.02)


def test_fields_that_tell_kinds_apart_are_found():
    source = Scenes(test=40, train=4, validation=4, speech=False)
    data = Data(
        source=source, inputs={"image": ImageInput(size=16), "count": LabelInput(names=("one", "two", "three"))}
    )
    rows = [
        {"label": row % 2, "count": row % 3, "name": f"example {row}", "always": 1, "image": b"", "speaker": "ann"}
        | ({"speaker": "bob"} if row % 5 == 0 else {})
        for row in range(40)
    ]
    found = find_values(Table(rows), data, None)
    assert set(found) == {"label", "count", "speaker"}
    assert found["count"][:3] == ["one", "two", "three"]
    assert found["label"][:2] == ["0", "1"]
    assert find_values(Table(rows), data, ["speaker"]) == {"speaker": found["speaker"]}
    with pytest.raises(
        UserError,
        match=r"^suites.slices.fields=name is not a field with 2 to 20 values; those are label, count, speaker$",
    ):
        find_values(Table(rows), data, ["name"])


def test_what_is_not_known_is_of_no_kind():
    rows = [{"speaker": "ann"}, {}, {"speaker": "bob"}, {"speaker": "bob"}]
    data = Data(source=Scenes(speech=False), inputs={"image": ImageInput(size=16)})
    assert find_values(Table(rows), data, None) == {"speaker": ["ann", "", "bob", "bob"]}
