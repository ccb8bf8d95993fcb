"""What evaluations of a run have found: evaluations/STEP.json, curves for TensorBoard, and one page of all steps."""

import contextlib
import dataclasses
import fcntl
import json
import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.errors import UserError
from mmjax.evaluation.suite_result import Metric, SuiteResult
from mmjax.files import explained, local_path, step_of, write_atomic
from mmjax.metrics.statistics import Statistic, intervals
from mmjax.reports.page import Card, Section, Table, render
from mmjax.reports.plots import curves_svg, panels

FOLDER, PAGE, SECTIONS = "evaluations", "report.html", "sections.json"
MOST_PANELS = 24
# What reading a file raises that is not what was written.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


def figures_of(findings: SuiteResult) -> dict[str, Metric]:
    """All figures by name, each that is a formula of examples with its interval; those of no example are left out."""
    alike: dict[int, dict[str, Statistic]] = {}
    for name, statistic in findings.statistics.items():
        if statistic.examples:
            alike.setdefault(len(statistic.units), {})[name] = statistic
    return dict(findings.figures) | {
        name: Metric(interval.value, interval.low, interval.high, group[name].examples)
        for group in alike.values()
        for name, interval in intervals(group).items()
    }


class Results:
    """The folder `evaluations` of a run directory.

    STEP.json holds `step`, the run's `fingerprint`, the fingerprint of the `data` by split, the `readers` by what they
    judge, `done` (which suites, by label) and `metrics`: "LABEL/OUTPUT/FIGURE" with `value`, `low`, `high` (null where
    there is none) and `examples`. A label is the split, and what else was asked for.
    """

    def __init__(self, run_dir: str | Path):
        self.folder = local_path(run_dir) / FOLDER

    @property
    def page(self) -> Path:
        """The HTML report of all steps."""
        return self.folder / PAGE

    def path(self, step: int) -> Path:
        """Where what is known of a step is."""
        return self.folder / f"{step}.json"

    def read(self, step: int) -> dict[str, Any]:
        """What is known of a step. Raises UserError where the file is damaged."""
        path = self.path(step)
        if not path.exists():
            return {}
        try:
            return _checked(_load(path), step)
        except DAMAGE as error:
            raise UserError(
                f"{path} is no evaluation in valid JSON, perhaps cut short; move it away, and ask again"
            ) from error

    def steps(self) -> list[int]:
        """The steps of which something is known."""
        return sorted(step for path in self.folder.glob("*.json") if (step := step_of(path.stem)) is not None)

    def has(self, step: int, label: str, suites: Collection[str]) -> bool:
        """Whether a step's suites, as they are asked for, were evaluated under a label."""
        return set(suites) <= set(self.read(step).get("done", {}).get(label, ()))

    def add(
        self,
        step: int,
        label: str,
        found: Mapping[str, SuiteResult],
        *,
        name: str,
        fingerprint: str,
        data: Mapping[str, str],
        readers: Mapping[str, str],
        asked: Collection[str],
    ) -> Path:
        """Puts what suites have found beside what is known of the step; returns the file's path.

        `name` and `fingerprint` are the experiment's, `data` and `readers` as above, and `asked` are all suites that
        were tried.
        """
        figures = {path: figure for findings in found.values() for path, figure in figures_of(findings).items()}
        with explained(self.folder):
            (self.folder / str(step)).mkdir(parents=True, exist_ok=True)
        with self._alone():
            known = self.read(step)
            done = known.get("done", {})
            whole = {
                "step": step,
                "fingerprint": fingerprint,
                "data": known.get("data", {}) | dict(data),
                "readers": known.get("readers", {}) | dict(readers),
                "done": done | {label: sorted({*done.get(label, ()), *asked})},
                "metrics": known.get("metrics", {})
                | {f"{label}/{path}": _plain(figure) for path, figure in figures.items()},
            }
            sections = self._sections(step)
            sections[label] = sections.get(label, {}) | {suite: list(each.sections) for suite, each in found.items()}
            content = json.dumps(sections, default=dataclasses.asdict)
            write_atomic(self.folder / str(step) / SECTIONS, content)
            written = write_atomic(self.path(step), json.dumps(whole, indent=2, allow_nan=False) + "\n")
            self._curves(step, {f"{label}/{path}": figure.value for path, figure in figures.items()})
            self._write_page(name)
        return written

    def check_writable(self) -> None:
        """Raises UserError where nothing can be put here."""
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._alone():
                pass

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other evaluations of the run from writing at the same time."""
        with open(self.folder / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _sections(self, step: int) -> dict[str, dict[str, list[Section]]]:
        """What suites show of a step, by label and suite. A damaged file is written again, and a line says so."""
        path = self.folder / str(step) / SECTIONS
        if not path.exists():
            return {}
        try:
            return {
                label: {suite: [_section(fields) for fields in parts] for suite, parts in suites.items()}
                for label, suites in _load(path).items()
            }
        except DAMAGE:
            print(f"{path} is damaged; the page leaves out what it held", file=sys.stderr, flush=True)
            return {}

    def _curves(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX import SummaryWriter

        place = self.folder.parent / "tensorboard" / FOLDER
        with explained(place), contextlib.closing(SummaryWriter(str(place))) as writer:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

    def _write_page(self, name: str) -> None:
        """The page: figures of the newest step, curves over all, and what its suites show."""
        from markupsafe import Markup

        steps = self.steps()
        known = [self.read(step) for step in steps]
        history = [
            # Of outputs as wholes; parts of them have no panel in common.
            {"step": each["step"]}
            | {name: figure["value"] for name, figure in each["metrics"].items() if name.count("/") == 2}
            for each in known
        ]
        newest = known[-1]
        drawn = panels(history) if len(known) > 1 else []
        facts = {"step": newest["step"], "steps evaluated": len(steps)}
        facts |= {f"data of {split}": found for split, found in newest["data"].items()}
        facts |= {f"reader of {target}": reader for target, reader in newest["readers"].items()}
        page = render(
            "evaluation.html",
            title=f"Evaluations of {name}",
            fingerprint=newest["fingerprint"],
            facts=facts,
            groups=_grouped(newest["metrics"]),
            panels=[(panel, Markup(curves_svg(panel, f"p{i}"))) for i, panel in enumerate(drawn[:MOST_PANELS])],
            panels_left_out=[panel.title for panel in drawn[MOST_PANELS:]],
            sections=[
                (f"{label}: {part.title}", part)
                for label, suites in self._sections(steps[-1]).items()
                for parts in suites.values()
                for part in parts
            ],
        )
        write_atomic(self.page, page)


def _plain(figure: Metric) -> dict[str, Any]:
    """A figure as JSON, which knows no NaN."""
    fields = dataclasses.asdict(figure)
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()
    }


def _grouped(metrics: Mapping[str, Any]) -> dict[str, list[tuple[str, Mapping[str, Any]]]]:
    """Figures by label and output."""
    groups: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for name, figure in sorted(metrics.items()):
        *group, rest = name.split("/", 2)
        groups.setdefault("/".join(group), []).append((rest, figure))
    return groups


def _load(path: Path) -> Any:
    """The JSON of a regular file, in which all numbers are finite and all texts can be written again."""
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    content = json.loads(path.read_bytes())
    json.dumps(content, allow_nan=False, ensure_ascii=False).encode()
    return content


def _checked(known: Any, step: int) -> dict[str, Any]:
    """What is known of a step, if it is what `Results.add` writes. Raises one of DAMAGE otherwise."""
    figures = known["metrics"].values()
    texts = [known["fingerprint"], *known["data"].values(), *known["readers"].values()]
    texts += [suite for suites in known["done"].values() for suite in suites]
    numbers = [figure[name] for figure in figures for name in ("value", "low", "high")]
    finite = all(number is None or math.isfinite(number) for number in numbers)
    counts = [known["step"], *(figure["examples"] for figure in figures)]
    if known["step"] != step or not finite or {str} != set(map(type, texts)) or {int} != set(map(type, counts)):
        raise ValueError("not what was written")
    return known


def _section(fields: Mapping[str, Any]) -> Section:
    """A section as it was before it became JSON. Raises one of DAMAGE where it is something else."""
    tables = [Table(_texts(table["columns"]), [_texts(row) for row in table["rows"]]) for table in fields["tables"]]
    cards = [
        Card(
            str(card["title"]),
            [(str(uri), str(caption)) for uri, caption in card["pictures"]],
            [(str(name), [(str(word), _finite(weight)) for word, weight in words]) for name, words in card["words"]],
            _texts(card["lines"]),
        )
        for card in fields["cards"]
    ]
    about, text, wide = str(fields["about"]), str(fields["text"]), bool(fields["wide"])
    return Section(str(fields["title"]), about, tables, _texts(fields["drawings"]), cards, text, wide)


def _texts(values: Sequence[Any]) -> list[str]:
    return [str(value) for value in values]


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return float(value)
