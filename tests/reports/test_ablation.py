"""The page and the Markdown of an ablation say who won, show what is known, and leave out what is not."""

import base64
import copy
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text
from scipy import stats

from mmjax.errors import UserError
from mmjax.reports.ablation import write_ablation_markdown, write_ablation_report
from mmjax.reports.ablation_plots import Point, _name_points, front
from mmjax.reports.ablation_summary import cautions, chance, headline
from mmjax.reports.plots import plain_axes
from tests.reports.test_run import Page

METRIC = "test/label/accuracy"
PAIRS = {"unique_a": 0.7, "unique_b": 0.4, "redundant": 1.2, "synergy": 0.1}
SECTIONS = (
    *("Comparison", "Metric and cost", "Learning curves", "Robustness", "Contributions of modalities"),
    *("Interaction of modalities", "Information found", "Growth of cost", "Failed", "How to read it"),
)
BEST = "Concat is best: test/label/accuracy 0.720 [0.715, 0.725] over 2 seeds."
DOUBTS = "Few seeds or steps"


def summary(index: int, seeds: int) -> dict[str, Any]:
    mean = 0.7 + 0.01 * index
    return {
        **{"mean": mean, "low": mean - 0.005, "high": mean + 0.005, "seeds": seeds},
        "difference": {"mean": 0.01 * index, "low": 0.0, "high": 0.02 * index, "p": 0.001, "p_holm": 0.01},
        **{"parameters": 123_456 + 1000 * index, "flops": 1.2e9, "step_seconds": 0.05 * 1.2**index, "peak_bytes": 1e8},
        **{"width": 104, "matched": 0.99, "pareto": index % 2 == 0, "none": 0.1, "probed": mean},
        "missing": {"image": 0.4, "speech": 0.5},
        "noise": {"image": 0.6, "speech": 0.65},
        "shapley": {"image": 0.35, "speech": mean - 0.45},
        "information": [{"a": "image", "b": "speech", **PAIRS, "total": 2.4}],
        "verdict": "adds only: finds 0.10 of 4.00 bits of synergy",
    }


def table(names: tuple[str, ...] = ("Sum", "Max", "Concat"), seeds: int = 2) -> dict[str, Any]:
    """An ablation in which the first choice is the baseline and the last one the best, the second best not beaten."""
    rows = {name: summary(index, seeds) for index, name in enumerate(names)}
    rows[names[0]]["difference"] = None
    cells = [
        {
            **{
                "choice": name,
                "seed": seed,
                "metrics": {METRIC: row["mean"] + 0.001 * seed * index},
                "run_dir": f"cells/{name}/seed_{seed}",
            },
            **{key: row[key] for key in ("parameters", "flops", "step_seconds", "peak_bytes", "width")},
            "curve": [[step, row["mean"] * (1 - 50 / step) + 0.01 * seed] for step in range(100, 1001, 100)],
        }
        for index, (name, row) in enumerate(rows.items())
        for seed in range(seeds)
    ]
    sizes = [64, 256, 1024, 4096]
    return {
        **{"experiment": "av_digits", "over": ["model.fusion"], "match": "flops", "metric": METRIC},
        **{
            "higher_is_better": True,
            "baseline": names[0],
            "chance": 0.125,
            "seeds": list(range(seeds)),
            "fingerprint": "0123abcd",
        },
        **{"seconds": 1234.5, "cells": cells, "summary": rows, "truth": {**PAIRS, "synergy": 4.0, "total": 6.3}},
        "failed": [{"choice": "Film", "seed": 1, "reason": "its loss was not finite"}],
        "winner": {
            **{"choice": names[-1], "better_than": list(names[:-2])},
            **{key: rows[names[-1]][key] for key in ("mean", "low", "high")},
        },
        "growth": {
            "tokens": sizes,
            "flops": {name: [0] * 4 if name == "Sum" else [1e4 * size for size in sizes] for name in names},
            "seconds": {name: [1e-3, 2e-3, 5e-3, None] for name in names},
            "exponents": {name: None if name == "Sum" else 1.0 for name in names},
        },
    }


def unknown(node: Any) -> Any:
    """The same with None for every number."""
    if isinstance(node, dict):
        return {key: unknown(value) for key, value in node.items()}
    if isinstance(node, list):
        return [unknown(value) for value in node]
    return None if isinstance(node, int | float) and not isinstance(node, bool) else node


def sections(text: str) -> list[str]:
    """The headings after that which says who won, and the doubts about that."""
    return [title for title in re.findall("<h2>(.*?)</h2>", text)[1:] if title != DOUBTS]


def drawings(text: str) -> list[str]:
    return [base64.b64decode(svg).decode() for svg in re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', text)]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    path = write_ablation_report(tmp_path_factory.mktemp("ablation"), table())
    assert path.name == "report.html"
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text()


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(text):
    page = Page(text)
    assert len(page.references) == len(drawings(text)) == 7
    assert all(reference.startswith("data:image/svg+xml;base64,") for reference in page.references)
    assert not {"script", "link"} & set(page.tags)
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    for part in (text, *drawings(text)):
        assert not re.search(r"@import|url\((?!#)|[^\w]on\w+=", part)
        assert set(re.findall(r"https?://[^\s\"<]+", part)) <= namespaces
    for drawing in drawings(text):
        ids = re.findall(r'\bid="([^"]*)"', drawing)
        assert set(re.findall(r'href="#([^"]*)"', drawing) + re.findall(r"url\(#([^)]*)\)", drawing)) <= set(ids)
        # Every colour of a plot is one of the page's.
        assert not re.search(r"#0[4-8]0[0-9a-f]{3}", drawing.partition("</style>")[2])


def test_the_headline_and_the_comparison_say_who_won_by_how_much(text):
    words = Page(text).words
    assert BEST in words
    about = "It is significantly better than Sum; it is not distinguishable from Max. "
    assert about + "Always predicting the commonest class reaches 0.125 (chance level)." in words
    assert sections(text) == list(SECTIONS)
    rows = [re.sub("<[^>]*>", " ", row).split() for row in re.findall("<tr.*?</tr>", text, re.DOTALL)]
    assert [row[0] for row in rows[1:4]] == ["Concat", "Max", "Sum"]
    assert " ".join(rows[1][1:]) == "0.720 [0.715, 0.725] +0.020 [+0.000, +0.040] 0.010 125 1.20 72.0 100 104 0.99 ✓"
    assert rows[3][1:7] == ["baseline", "0.700", "[0.695,", "0.705]", "–", "–"]
    assert {"parameters (k)", "step FLOPs (G)", "step time (ms)", "peak memory (MB)", "FLOPs / baseline"} <= set(words)
    assert {"test", "/label", "/accuracy"} <= set(words)  # a heading may be broken at a slash
    assert "20 min 34 s" in words
    assert "6 of 7" in words


def test_robustness_and_what_failed_are_told(text):
    words = Page(text).words
    assert {"without image", "noise in speech", "0.400", "−0.320", "its loss was not finite"} <= set(words)
    shades = [float(share) for share in re.findall(r"rgb\(214 60 40 / ([\d.]+)\)", text)]
    assert len(shades) == 12
    assert shades[0] == max(shades) == 0.6  # Concat without pictures loses the most
    assert words.count("adds only: finds 0.10 of 4.00 bits of synergy") == 3
    assert words.count("exponent 1.00") == 2
    assert "seconds" not in words
    assert "only both together (synergy)" in words


def test_the_same_table_makes_the_same_files_also_from_json(tmp_path, text):
    again = json.loads(json.dumps(table()))
    assert write_ablation_report(tmp_path, again).read_text() == text
    markdown = write_ablation_markdown(tmp_path, again).read_text()
    assert write_ablation_markdown(tmp_path, table()).read_text() == markdown


def test_sections_that_have_nothing_to_show_are_left_out(tmp_path):
    bare = table()
    for row in bare["summary"].values():
        for key in ("missing", "noise", "none", "shapley", "probed", "information", "verdict"):
            del row[key]
    for cell in bare["cells"]:
        cell["curve"] = []
    bare |= {"failed": [], "truth": None, "growth": None, "match": "none"}
    text = write_ablation_report(tmp_path, bare).read_text()
    assert sections(text) == ["Comparison", "Metric and cost", "How to read it"]
    assert "Shapley" not in text
    empty = {name: {**row, "missing": {}, "information": [], "verdict": None} for name, row in bare["summary"].items()}
    assert sections(write_ablation_report(tmp_path, bare | {"summary": empty}).read_text()) == sections(text)


def test_numbers_that_are_unknown_are_shown_as_such(tmp_path):
    known = table()
    unsure = unknown(known) | {"seeds": [0, 1], "failed": known["failed"]}
    text = write_ablation_report(tmp_path, unsure).read_text()
    assert "Concat is best: test/label/accuracy –." in Page(text).words
    assert "None" not in Page(text).words
    assert sections(text) == ["Comparison", "Information found", "Failed", "How to read it"]
    assert "| Concat |" in write_ablation_markdown(tmp_path, unsure).read_text()
    # Nothing came to its end.
    gone = known | {"summary": {}, "cells": [], "winner": None, "growth": None}
    text = write_ablation_report(tmp_path, gone).read_text()
    assert sections(text) == ["Failed", "How to read it"]
    assert "No choice can be called the best." in Page(text).words


def test_a_choice_that_lacks_a_seed_or_a_figure(tmp_path):
    torn = table()
    torn["summary"]["Max"] |= {"seeds": 1, "low": None, "high": None, "missing": {"image": None, "speech": 0.5}}
    torn["summary"]["Max"]["shapley"] = {"image": -0.1, "speech": None}
    torn["summary"]["Sum"] |= {"mean": None, "low": None, "high": None, "peak_bytes": None, "flops": None}
    text = write_ablation_report(tmp_path, torn).read_text()
    assert "1 of 2 seeds" in Page(text).words
    assert "0.710" in Page(text).words
    assert "| Max (1 of 2 seeds) | 0.710 |" in write_ablation_markdown(tmp_path, torn).read_text()


def test_where_less_is_better_the_lowest_comes_first(tmp_path):
    losses = table() | {"higher_is_better": False, "metric": "test/loss", "match": "params"}
    losses["winner"] = {"choice": "Sum", "mean": 0.7, "low": 0.695, "high": 0.705, "better_than": ["Max", "Concat"]}
    assert headline(losses)[1] == "It is significantly better than all others: Max and Concat."
    markdown = write_ablation_markdown(tmp_path, losses).read_text()
    assert re.findall(r"^\| (\w+)", markdown, re.MULTILINE) == ["choice", "Sum", "Max", "Concat"]
    text = write_ablation_report(tmp_path, losses).read_text()
    assert 'class="figure worse"' in text  # higher than the baseline
    assert 'class="figure better"' not in text
    assert "rgb(214" not in text  # what is lower without a modality is no loss
    assert "parameters / baseline" in Page(text).words


def test_headlines():
    one = table()
    one["winner"]["better_than"] = []
    assert headline(one)[1] == "It is not distinguishable from any of the others: Max and Sum."
    one["summary"] = {"Concat": one["summary"]["Concat"] | {"seeds": 1}}
    assert headline(one) == (
        "Concat is ahead: test/label/accuracy 0.720 [0.715, 0.725] over 1 seed.",
        "It is the only one that finished.",
    )


def test_few_seeds_and_short_runs_are_warned_of(text):
    # The differences between the two seeds are 0 and 0.001 for Max, 0 and 0.002 for Concat.
    deviation = np.sqrt((np.var([0, 0.001], ddof=1) + np.var([0, 0.002], ddof=1)) / 2)
    least = stats.t.ppf(0.975, 1) * deviation / np.sqrt(2)
    said = f"2 seeds: differences under {least:.3f} cannot be detected at the mean spread of seeds."
    assert "under 0.010 cannot" in said
    assert cautions(table()) == [said]
    assert f"<h2>{DOUBTS}</h2>" in text
    assert cautions(table(seeds=5)) == []
    assert cautions(table(seeds=1)) == ["1 seed: nothing is known of how much seeds differ."]
    rising = table(seeds=5)
    for cell in rising["cells"]:
        cell["curve"] = [[step, step / 1000] for step in range(100, 1001, 100)]
    last = "The runs were still improving after their 1,000 steps: longer ones may rank otherwise."
    assert cautions(rising) == [last]
    assert cautions(rising | {"higher_is_better": False}) == []


def test_what_is_no_better_than_chance_is_said():
    low = table() | {"chance": 0.72}
    assert chance(low).endswith("reaches 0.720 (chance level); the best choice is not distinguishable from that.")
    assert chance(low | {"chance": None}) == ""


def test_names_are_text_wherever_they_stand(tmp_path):
    names = ("<b>", "a | b $x^2$ `c`", "</svg>--><script>alert(1)</script>")
    text = write_ablation_report(tmp_path, table(names)).read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert page.words.count("<b>") >= 4
    assert "<script" not in text
    row = write_ablation_markdown(tmp_path, table(names)).read_text().splitlines()[7]
    assert row.startswith(r"| a \| b \$x^2\$ \`c\` | 0.710 [0.705, 0.715] |")


def test_seventeen_choices_of_three_seeds(tmp_path):
    names = tuple(f"Fusion{index}" for index in range(17))
    path = write_ablation_report(tmp_path, table(names, seeds=3))
    text = path.read_text()
    assert path.stat().st_size < 2e6
    assert sections(text) == list(SECTIONS)
    Page(text)
    assert re.findall(r"<h3>(Fusion\d+): 0.\d+</h3>", text) == [f"Fusion{index}" for index in reversed(range(17))]
    assert "Fusion16 is best" in text


def test_names_of_points_lie_apart():
    rng = np.random.default_rng(0)
    means = rng.uniform(0.70, 0.75, 17)
    points = [
        Point(f"Fusion {i}", rng.uniform(1, 1.1), mean, mean - 0.005, mean + 0.005) for i, mean in enumerate(means)
    ]
    axes = plain_axes(5.5, 4.2)[1]
    for point in points:
        axes.plot([point.cost] * 3, [point.low, point.mean, point.high])
    _name_points(axes, points, front(points, True))
    axes.figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the lines that lead to them
    assert len(boxes) == 17
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    places = axes.transData.transform([(point.cost, point.mean) for point in points])
    assert not [box for box in boxes for place in places if box.contains(*place)]
    assert all(axes.bbox.contains(*corner) for box in boxes for corner in box.corners())


def test_the_front_is_what_nothing_cheaper_beats():
    points = [Point(name, cost, mean, mean, mean) for name, cost, mean in (("a", 1, 0.5), ("b", 2, 0.4), ("c", 3, 0.6))]
    assert [point.name for point in front(points, True)] == ["a", "c"]
    assert [point.name for point in front(points, False)] == ["a", "b"]
    assert [point.name for point in front([*points, Point("d", 1, 0.7, 0.7, 0.7)], True)] == ["d"]


def test_the_table_is_not_changed(tmp_path):
    given = table()
    kept = copy.deepcopy(given)
    write_ablation_report(tmp_path, given)
    write_ablation_markdown(tmp_path, given)
    assert given == kept


def test_what_cannot_be_written_is_told(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot write .*table\.md"):
        write_ablation_markdown(tmp_path / "absent", table())
