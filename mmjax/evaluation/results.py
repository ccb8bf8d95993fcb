"""Results of a run's evaluations: JSON by step, curves for TensorBoard, and one page of all steps."""

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmjax.buckets import UploadedFolder
from mmjax.errors import UserError
from mmjax.evaluation.suite_result import Metric, SuiteResult
from mmjax.files import explained, step_of, to_path, waiting_lock, write_atomic
from mmjax.formatting import number
from mmjax.metrics.statistics import Statistic, intervals
from mmjax.reports.curves import PRIMARY, curve_sections
from mmjax.reports.page import Section, Table, read_section, write_page

FOLDER, PAGE, SECTIONS = "evaluations", "report.html", "sections.json"
# What reading a file raises that is not what was written.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


def metrics_of(result: SuiteResult) -> dict[str, Metric]:
    """All metrics by name, with intervals where they are formulas of examples, if of any example."""
    by_size: dict[int, dict[str, Statistic]] = {}
    for name, statistic in result.statistics.items():
        if statistic.examples:
            by_size.setdefault(len(statistic.resampling_units), {})[name] = statistic
    return dict(result.figures) | {
        name: Metric(interval.value, interval.low, interval.high, group[name].examples)
        for group in by_size.values()
        for name, interval in intervals(group).items()
    }


class Results:
    """The folder `evaluations` of a run directory.

    STEP.json holds `step`, the run's `fingerprint`, the fingerprint of the `data` by split, the `readers` by what they
    judge, `done` (which suites, by label) and `metrics`: "LABEL/OUTPUT/FIGURE" with `value`, `low`, `high` (null where
    there is none) and `examples`. A label is the split, and what else was asked for.
    """

    def __init__(self, run_dir: str | Path):
        self.folder = to_path(run_dir) / FOLDER

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
                f"{path} is not an evaluation in valid JSON, perhaps cut short; move it away, and evaluate again"
            ) from error

    def steps(self) -> list[int]:
        """The steps of which something is known."""
        return sorted(step for path in self.folder.glob("*.json") if (step := step_of(path.stem)) is not None)

    def has(self, step: int, label: str, suites: Collection[str]) -> bool:
        """Whether a step's suites, with the options they are requested with, were evaluated under a label."""
        return set(suites) <= set(self.read(step).get("done", {}).get(label, ()))

    def add(
        self,
        step: int,
        label: str,
        suite_results: Mapping[str, SuiteResult],
        *,
        name: str,
        fingerprint: str,
        data: Mapping[str, str],
        requests: Collection[str],
    ) -> Path:
        """Adds the results of suites to those of the step; returns the file's path.

        `name` and `fingerprint` are the experiment's, `data` as above, and `requests` are all suites that were tried,
        with their options.
        """
        metrics = {path: metric for result in suite_results.values() for path, metric in metrics_of(result).items()}
        readers = {target: name for result in suite_results.values() for target, name in result.readers.items()}
        with explained(self.folder):
            (self.folder / str(step)).mkdir(parents=True, exist_ok=True)
        with self._alone():
            known = self.read(step)
            done = known.get("done", {})
            whole = {
                "step": step,
                "fingerprint": fingerprint,
                "data": known.get("data", {}) | dict(data),
                "readers": known.get("readers", {}) | readers,
                "done": done | {label: sorted({*done.get(label, ()), *requests})},
                "metrics": known.get("metrics", {})
                | {f"{label}/{path}": _plain(metric) for path, metric in metrics.items()},
            }
            sections = self._sections(step)
            sections[label] = sections.get(label, {}) | {
                suite: list(each.sections) for suite, each in suite_results.items()
            }
            content = json.dumps(sections, default=dataclasses.asdict)
            write_atomic(self.folder / str(step) / SECTIONS, content)
            written = write_atomic(self.path(step), json.dumps(whole, indent=2, allow_nan=False) + "\n")
            self._curves(step, {f"{label}/{path}": metric.value for path, metric in metrics.items()})
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
        with waiting_lock(self.folder / ".lock"):
            yield

    def _sections(self, step: int) -> dict[str, dict[str, list[Section]]]:
        """The page's sections of a step, by label and suite; with a warning none where the file is damaged."""
        path = self.folder / str(step) / SECTIONS
        if not path.exists():
            return {}
        try:
            return {
                label: {suite: [read_section(fields) for fields in parts] for suite, parts in suites.items()}
                for label, suites in _load(path).items()
            }
        except DAMAGE:
            print(f"{path} is damaged; the page leaves out what it held", file=sys.stderr, flush=True)
            return {}

    def _curves(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX import SummaryWriter

        place = self.folder.parent / "tensorboard" / FOLDER
        with (
            explained(place),
            contextlib.closing(UploadedFolder(place)) as folder,
            contextlib.closing(SummaryWriter(str(folder.path))) as writer,
        ):
            for name, value in values.items():
                writer.add_scalar(name, value, step)

    def _write_page(self, name: str) -> None:
        """The page: figures of the newest step, curves over all, and what its suites show."""
        steps = self.steps()
        known = [self.read(step) for step in steps]
        history = [
            # Of outputs as wholes; parts of them have no panel in common.
            {"step": each["step"]}
            | {name: figure["value"] for name, figure in each["metrics"].items() if name.count("/") == 2}
            for each in known
        ]
        newest = known[-1]
        facts = {"step": newest["step"], "steps evaluated": len(steps)}
        facts |= {f"data of {split}": fingerprint for split, fingerprint in newest["data"].items()}
        facts |= {f"reader of {target}": reader for target, reader in newest["readers"].items()}
        facts |= {"fingerprint": newest["fingerprint"]}
        about = "With 95% intervals, by bootstrap over examples or clusters of them where a metric is one of examples."
        tables = _tables(newest["metrics"])
        sections = [
            *([Section("Metrics", about, tables)] if tables else []),
            *(curve_sections(history) if len(known) > 1 else []),
            *(
                dataclasses.replace(part, title=f"{label}: {part.title}")
                for label, suites in self._sections(steps[-1]).items()
                for parts in suites.values()
                for part in parts
            ),
        ]
        write_page(self.page, f"Evaluations of {name}", facts, sections)


def _plain(figure: Metric) -> dict[str, Any]:
    """A figure as JSON, which knows no NaN."""
    fields = dataclasses.asdict(figure)
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()
    }


def _tables(metrics: Mapping[str, Any]) -> list[Table]:
    """A table of the main metrics, and one for each label and output; of these long ones are folded."""
    main: list[list[str]] = []
    groups: dict[str, list[list[str]]] = {}
    for name, figure in sorted(metrics.items()):
        *group, rest = name.split("/", 2)
        values = ["" if figure[key] is None else number(figure[key]) for key in ("value", "low", "high")]
        values.append(number(figure["examples"]))
        main += [[name, *values]] if PRIMARY.fullmatch(rest) else []
        groups.setdefault("/".join(group), []).append([rest, *values])
    columns = ["metric", "value", "from", "to", "examples"]
    tables = [Table(columns, rows, group, folded=len(rows) > 15) for group, rows in groups.items()]
    return [*([Table(columns, main)] if main else []), *tables]


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
