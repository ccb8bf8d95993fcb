"""What evaluations of a run have found: evaluations/STEP.json, curves for TensorBoard, and one page of all steps."""

import contextlib
import dataclasses
import fcntl
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.errors import UserError
from mmjax.evaluation.figures import curves_svg, panels
from mmjax.evaluation.findings import Card, Figure, Findings, Section, Table
from mmjax.evaluation.page import render
from mmjax.evaluation.statistic import Statistic, intervals
from mmjax.files import explained, step_of, write_atomic

FOLDER, PAGE, SECTIONS = "evaluations", "report.html", "sections.json"
MOST_PANELS = 24


def figures_of(findings: Findings) -> dict[str, Figure]:
    """All figures by name, each that is a formula of examples with its interval; those of no example are left out."""
    alike: dict[int, dict[str, Statistic]] = {}
    for name, statistic in findings.statistics.items():
        if statistic.examples:
            alike.setdefault(len(statistic.columns), {})[name] = statistic
    return dict(findings.figures) | {
        name: Figure(interval.value, interval.low, interval.high, group[name].examples)
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
        self.folder = Path(run_dir).expanduser() / FOLDER

    def path(self, step: int) -> Path:
        """Where what is known of a step is."""
        return self.folder / f"{step}.json"

    def read(self, step: int) -> dict[str, Any]:
        """What is known of a step. Raises UserError where the file is damaged."""
        path = self.path(step)
        if not path.exists():
            return {}
        try:
            known = json.loads(path.read_text())
            return known | {"metrics": {**known["metrics"]}, "done": {**known["done"]}}
        except (ValueError, KeyError, TypeError) as error:
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
        found: Mapping[str, Findings],
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
            shown = {suite: [dataclasses.asdict(part) for part in each.sections] for suite, each in found.items()}
            sections[label] = sections.get(label, {}) | shown
            write_atomic(self.folder / str(step) / SECTIONS, json.dumps(sections))
            written = write_atomic(self.path(step), json.dumps(whole, indent=2, allow_nan=False) + "\n")
            self._write_page(name)
            self._curves(step, {f"{label}/{path}": figure.value for path, figure in figures.items()})
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

    def _sections(self, step: int) -> dict[str, dict[str, list[Any]]]:
        try:
            return json.loads((self.folder / str(step) / SECTIONS).read_text())
        except (OSError, ValueError):
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
                for part in map(_section, parts)
            ],
        )
        write_atomic(self.folder / PAGE, page)


def _plain(figure: Figure) -> dict[str, Any]:
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


def _section(fields: Mapping[str, Any]) -> Section:
    """A section as it was before it became JSON."""
    tables = [Table(**table) for table in fields["tables"]]
    cards = [
        Card(
            card["title"],
            [(uri, caption) for uri, caption in card["pictures"]],
            [(name, [(word, weight) for word, weight in words]) for name, words in card["words"]],
            card["lines"],
        )
        for card in fields["cards"]
    ]
    drawings: Sequence[str] = fields["drawings"]
    return Section(fields["title"], fields["about"], tables, drawings, cards)
