"""The report of a run: key results and what they mean, curves, examples, skipped data."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmjax.files import to_path
from mmjax.formatting import duration, number, percent
from mmjax.reports.curves import PRIMARY, curve_sections
from mmjax.reports.page import Cell, Section, Table, write_page
from mmjax.types import Feature, Label, Text, Vector

SPLITS = ("test", "validation", "train")
MOST_REASONS = 20


class Meaning(NamedTuple):
    """What a metric says, whether it is a share of 1, and what random guessing reaches if known."""

    words: str
    share: bool = False
    chance: float | None = None


def write_report(
    run_dir: str | Path,
    experiment_json: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    examples: Sequence[Section],
    *,
    facts: Mapping[str, Any],
    targets: Mapping[str, Feature],
    sizes: Mapping[str, int],
    sources: Sequence[str] = (),
    stopped: str = "",
) -> Path:
    """Writes `run_dir`/report.html, all at once, and returns its path.

    `experiment_json` is what experiment.json holds, `history` the lines of metrics.jsonl, `summary` what summary.json
    holds; `examples` are those of `mmjax.reports.examples`, `facts` stand under the title beside steps and time,
    `targets` are the features that outputs predict, `sizes` the examples of each split, `sources` the names of those of
    a mixture, and `stopped` is why the run could not go on. What data_errors.jsonl in `run_dir` lists is summed up.
    Raises UserError where the page cannot be written.
    """
    run_dir = to_path(run_dir)
    steps = {"steps": summary["step"], "time": duration(summary["seconds"])}
    digests = f"parameters {summary['parameters_digest']}, examples {summary['examples_digest']}"
    metrics = summary["metrics"]
    shared = [_without(line, sources) for line in history]
    sections = [
        *_warnings(summary, history, stopped),
        _key_results(_without(metrics, sources), shared, targets, sizes),
        *_by_source({**(history[-1] if history else {}), **metrics}, sources),
        *curve_sections(shared),
        *examples,
        _skipped(run_dir / "data_errors.jsonl"),
        *_all_metrics(metrics),
        Section(
            "Resolved configuration",
            f"SHA-256 digests: {digests}.",
            text=json.dumps(experiment_json, indent=2, ensure_ascii=False),
            folded=True,
        ),
    ]
    name = experiment_json.get("experiment", experiment_json).get("name", "run")
    facts = {**steps, **facts, "fingerprint": summary["fingerprint"]}
    return write_page(run_dir / "report.html", f"Run of {name}", facts, sections)


def _warnings(summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]], stopped: str) -> list[Section]:
    """Warnings before any result: why the run stopped, what is not finite, steps skipped."""
    found = [Section(f"Stopped at step {summary['step']:,}", stopped, warning=True)] if stopped else []
    invalid = [name for name, value in summary["metrics"].items() if value is None or not math.isfinite(value)]
    if invalid:
        found.append(Section("Metrics that are not finite", ", ".join(invalid), warning=True))
    skipped = [line["train/skipped"] for line in history if line.get("train/skipped")]
    if skipped and not stopped:
        about = f"{number(skipped[-1])} steps changed nothing, because their loss or gradients were not finite."
        found.append(Section("Skipped steps", about, warning=True))
    return found


def _key_results(
    metrics: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    targets: Mapping[str, Feature],
    sizes: Mapping[str, int],
) -> Section:
    """The main metrics of each output by split, beside chance where it is known, and what they mean."""
    last = {name: value for line in history for name, value in line.items() if name.startswith("train/")}
    known = last | dict(metrics)
    splits = [split for split in SPLITS if any(name.startswith(f"{split}/") for name in known)]
    names = dict.fromkeys(name.partition("/")[2] for name in known if name.count("/") > 1)
    outputs: dict[str, list[str]] = {}
    for name in names:
        output, _, metric = name.rpartition("/")
        outputs.setdefault(output, []).append(metric)
    rows: list[Sequence[str | Cell]] = []
    for output, own in outputs.items():
        for metric, meaning in _meanings(own, targets.get(output), sizes.get(splits[0], 0)).items():
            values = {split: known.get(f"{split}/{output}/{metric}") for split in splits}
            if any(value is not None for value in values.values()):
                first, *others = (Cell(_shown(value, meaning)) for value in values.values())
                shown = [first._replace(tone="best"), *others]
                chance = "" if meaning.chance is None else percent(meaning.chance)
                note = _against_chance(values[splits[0]], meaning, sizes.get(splits[0], 0))
                head, says = Cell(output, metric.replace("_", " ")), Cell(meaning.words, note)
                rows.append([head, *shown, chance, says])
    if "loss" in (name.partition("/")[2] for name in known):
        losses = [_shown(known.get(f"{split}/loss"), Meaning("")) for split in splits]
        rows.append([Cell("all outputs", "loss"), *losses, "", "what training minimizes, over all outputs"])
    if not rows:
        return Section("Key results", "No metrics were computed.")
    titles = ["train, last logged" if split == "train" else _sized(split, sizes) for split in splits]
    about = "" if set(splits) - {"train"} else "The run has not been evaluated: these are of the last training steps."
    return Section("Key results", about, [Table(["output", *titles, "chance", "what it says"], rows)])


def _source_of(name: str, sources: Sequence[str]) -> str | None:
    """The source that a metric is of, as in "test/SOURCE/label/accuracy" and "data/SOURCE/epochs"; None: of all."""
    _, *middle, _ = name.split("/") if "/" in name else ("", "")
    return middle[0] if middle and middle[0] in sources else None


def _without(metrics: Mapping[str, Any], sources: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if _source_of(name, sources) is None}


def _by_source(metrics: Mapping[str, Any], sources: Sequence[str]) -> list[Section]:
    """What was read of each source of a mixture, and its main metrics."""
    rows: dict[str, dict[str, str]] = {}
    for name, value in metrics.items():
        source, metric = _source_of(name, sources), name.rpartition("/")[2]
        if source is not None and (name.startswith("data/") or metric == "loss" or PRIMARY.fullmatch(metric)):
            shown = name.replace(f"/{source}/", "/", 1).removeprefix("data/")
            rows.setdefault(shown, {})[source] = "" if value is None else number(value)
    if not rows:
        return []
    cells = [[name, *(row.get(source, "") for source in sources)] for name, row in rows.items()]
    return [Section("By source", "What training read of each source, and its metrics.", [Table(["", *sources], cells)])]


def _sized(split: str, sizes: Mapping[str, int]) -> str:
    return f"{split}, {sizes[split]:,} examples" if split in sizes else split


def _meanings(metrics: Sequence[str], feature: Feature | None, examples: int) -> dict[str, Meaning]:
    """The key metrics of an output, by what it predicts; of one whose kind is unknown its loss."""
    match feature:
        case Label(names, _):
            found = {"accuracy": Meaning(f"predictions that are right, of {len(names)} classes", True, 1 / len(names))}
        case Text():
            found = {
                "exact": Meaning("generated texts that equal the true one", True),
                "word_error": Meaning("words to change, add or remove for each true word; lower is better"),
            }
        case Vector():
            found = {"absolute_error": Meaning("distance between predicted and true value; lower is better")}
        case None:
            found = {}
            for metric in metrics:
                query, by, gallery = metric.removesuffix("_recall@1").partition("_to_")
                if by and metric.endswith("_recall@1"):
                    words = f"{query} queries whose first result of all {gallery} examples is the true one"
                    found[metric] = Meaning(words, True, 1 / examples if examples else None)
        case _:
            error = "squared difference between generated and true values; lower is better"
            found = {
                "square_error": Meaning(error),
                "spectral_distance": Meaning("distance of spectra; lower is better"),
            }
    found = {metric: meaning for metric, meaning in found.items() if metric in metrics}
    return found or {"loss": Meaning("loss; lower is better")}


def _shown(value: float | None, meaning: Meaning) -> str:
    if value is None:
        return ""
    return percent(value) if meaning.share and math.isfinite(value) else number(value)


def _against_chance(value: float | None, meaning: Meaning, examples: int) -> str:
    """Says so where a share is within two standard errors of chance, or below it."""
    if value is None or meaning.chance is None or not examples:
        return ""
    error = math.sqrt(meaning.chance * (1 - meaning.chance) / examples)
    return "no better than chance" if value <= meaning.chance + 2 * error else ""


def _all_metrics(metrics: Mapping[str, Any]) -> list[Section]:
    """The final metrics as columns (splits) and rows (output and metric), those of one output together."""
    rows: dict[str, dict[str, Any]] = {}
    for name, value in metrics.items():
        split, _, rest = name.partition("/")
        rows.setdefault(rest, {})[split] = value
    splits = list(dict.fromkeys(split for row in rows.values() for split in row))
    cells = [
        [name, *(number(row[split]) if split in row else "" for split in splits)]
        for name, row in sorted(rows.items(), key=lambda row: row[0].rpartition("/")[0])
    ]
    return [Section("All final metrics", tables=[Table(["metric", *splits], cells)], folded=True)] if rows else []


def _skipped(path: Path) -> Section:
    """How often each feature was skipped for which reason, with examples; commonest first."""
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
    if not reasons:
        return Section("Skipped data", "None: every value that was read could be used.", folded=True)
    ordered = sorted(reasons.items(), key=lambda item: -item[1][0])
    total = sum(count for count, _ in reasons.values())
    about = f"{total:,} value{'' if total == 1 else 's'} could not be used and counted as absent."
    if len(ordered) > MOST_REASONS:
        about += f" {len(ordered) - MOST_REASONS} further reasons are in data_errors.jsonl."
    rows = [
        [feature, reason, f"{count:,}", ", ".join(ids)] for (feature, reason), (count, ids) in ordered[:MOST_REASONS]
    ]
    return Section("Skipped data", about, [Table(["feature", "reason", "times", "for example"], rows)])
