"""The report of a run: one HTML page that holds everything it shows, to be read, printed, or sent to somebody."""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from mmjax.files import local_path, write_atomic
from mmjax.formatting import duration
from mmjax.reports.page import render
from mmjax.reports.plots import curves_svg, panels, picture_uri, spectrum_uri

SPLITS = ("train", "validation", "test")
# What keeps the page below 2 MB.
LARGEST_EXAMPLES = 1_200_000
MOST_PANELS = 24
LONGEST_TEXT = 600
MOST_REASONS = 20


class Prediction(NamedTuple):
    """One answer of the model: confidence in [0, 1] or None; truth None if nobody knows it.

    An answer that is not `exact` (a measured quantity, say) stands beside its truth, called neither right nor wrong.
    """

    name: str
    truth: str | None
    predicted: str
    confidence: float | None = None
    exact: bool = True

    @property
    def right(self) -> bool | None:
        """Whether it is right; None if that cannot be said."""
        return self.predicted == self.truth if self.exact and self.truth is not None else None


@dataclasses.dataclass(frozen=True)
class Example:
    """One example as the report shows it: what went in (absent modalities left out) and what the model made of it."""

    id: str
    images: Mapping[str, Float[np.ndarray, "H W C"]] = dataclasses.field(default_factory=dict)
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    spectra: Mapping[str, Float[np.ndarray, "T M"]] = dataclasses.field(default_factory=dict)
    predictions: Sequence[tuple] = ()


def write_report(
    run_dir: str | os.PathLike[str],
    experiment_json: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    examples: Sequence[Example],
    *,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `run_dir`/report.html, all at once, and returns its path.

    `experiment_json` is what experiment.json holds, `history` the lines of metrics.jsonl, `summary` what summary.json
    holds; `facts` are shown in the header beside steps and time (number of parameters, devices, ...). What
    data_errors.jsonl in `run_dir` lists is summed up. Raises UserError where the page cannot be written.
    """
    from markupsafe import Markup

    run_dir = local_path(run_dir)
    drawn = panels(history)
    shown = list(_cards(examples))
    page = render(
        "report.html",
        name=experiment_json.get("experiment", experiment_json).get("name", "run"),
        summary=summary,
        facts={"steps": summary["step"], "time": duration(summary["seconds"]), **(facts or {})},
        table=_metrics_table(summary["metrics"]),
        panels=[(panel, Markup(curves_svg(panel, f"p{i}"))) for i, panel in enumerate(drawn[:MOST_PANELS])],
        panels_left_out=[panel.title for panel in drawn[MOST_PANELS:]],
        cards=shown,
        cards_left_out=len(examples) - len(shown),
        skipped=_skipped(run_dir / "data_errors.jsonl"),
        configuration=json.dumps(experiment_json, indent=2, ensure_ascii=False),
    )
    return write_atomic(run_dir / "report.html", page)


def _metrics_table(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Final metrics as columns (splits) and rows (output and metric), those of one output together."""
    rows: dict[str, dict[str, Any]] = {}
    for name, value in metrics.items():
        split, _, rest = name.partition("/")
        rows.setdefault(rest, {})[split] = value
    splits = {split for row in rows.values() for split in row}
    columns = [*(split for split in SPLITS if split in splits), *sorted(splits - set(SPLITS))]
    return {"columns": columns, "rows": dict(sorted(rows.items(), key=lambda row: row[0].rpartition("/")[0]))}


def _cards(examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
    """What the template needs of each example, for as many as the page may hold."""
    size = 0
    for example in examples:
        predictions = [Prediction(*prediction) for prediction in example.predictions]
        judged = [prediction.right for prediction in predictions if prediction.right is not None]
        card = {
            "id": example.id,
            "images": [(name, picture_uri(image), max(image.shape[:2]) < 96) for name, image in example.images.items()],
            "spectra": [(name, spectrum_uri(frames)) for name, frames in example.spectra.items()],
            "texts": [(name, _shortened(text)) for name, text in example.texts.items()],
            "predictions": predictions,
            "right": sum(judged),
            "judged": len(judged),
        }
        # The marks around them are about this long.
        size += len(json.dumps(card)) + 400 * len(predictions) + 1000
        if size > LARGEST_EXAMPLES:
            return
        yield card


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " …"


def _skipped(path: Path) -> dict[str, Any]:
    """How often which feature was skipped for which reason, with the first examples of each; commonest first."""
    reasons: dict[tuple[str, str], list[Any]] = {}
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    error = json.loads(line)
                except ValueError:  # torn by a killed process
                    continue
                entry = reasons.setdefault((error["feature"], error["reason"]), [0, []])
                entry[0] += 1
                if len(entry[1]) < 3 and error["id"] not in entry[1]:
                    entry[1].append(error["id"])
    ordered = sorted(reasons.items(), key=lambda item: -item[1][0])
    return {
        "total": sum(count for count, _ in reasons.values()),
        "rows": [(feature, reason, count, ids) for (feature, reason), (count, ids) in ordered[:MOST_REASONS]],
        "left_out": len(ordered[MOST_REASONS:]),
    }
