"""Evaluate a run's checkpoints on held-out data.

    python -m launch.evaluate RUN_DIR [step=all|watch=true] [suite=...]

The run may still be going on. The last line on standard output is the path of evaluations/STEP.json, which holds the
results of all evaluations of the step; evaluations/report.html shows them. `compare RUN_A RUN_B` in place of a run
directory compares runs: see `launch.compare`.
"""

import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import chz
import jax

from mmjax.config.schema import text
from mmjax.errors import NoCheckpoint, Preempted, UserError
from mmjax.evaluation.results import Results
from mmjax.evaluation.run import EvalRun
from mmjax.evaluation.suite_result import Metric
from mmjax.evaluation.suites import Suite
from mmjax.evaluation.suites.base import DEFAULT, default_suites
from mmjax.evaluation.suites.standard import KEY_METRICS
from mmjax.files import step_of
from mmjax.generators import Decoding
from mmjax.sharding.mesh import MeshShape
from mmjax.signals import preemption_guard

from . import command_line, compare
from .huge_pages import prefer_huge_pages

# Between two looks at a run's folder, seconds.
PATIENCE = 1.0


@chz.chz
class Evaluation:
    """Which checkpoints are evaluated, on what, by which suites."""

    run_dir: str = chz.field(doc="the run whose checkpoints they are")
    split: str = chz.field(default="test", doc="which of the source's splits")
    step: str = chz.field(default="latest", doc="the checkpoint, by its number; latest, or all there are")
    watch: bool = chz.field(default=False, doc="evaluate every checkpoint as it appears, until the run is complete")
    suite: tuple[str, ...] = chz.field(default=DEFAULT, doc="what is evaluated: names of `suites`, or all")
    suites: Mapping[str, Suite] = chz.field(default_factory=default_suites, doc="the options of every suite")
    given: str | None = chz.field(
        default=None, doc="the modalities that the model may see, separated by commas; None: all"
    )
    decoding: Decoding | None = chz.field(
        default=None, doc="how texts, and the codes of images, are written; None: as the run does"
    )
    mesh: MeshShape = chz.field(default=MeshShape(), doc="devices of this evaluation, whatever the run has")
    seed: int = chz.field(default=0, doc="what draws follow from")

    @chz.validate
    def _possible(self) -> None:
        if self.seed < 0:
            raise ValueError("seed must not be negative")
        if self.step not in ("latest", "all") and step_of(self.step) is None:
            raise ValueError(f"step={self.step} must be a checkpoint's number, latest, or all")
        if self.watch and self.step != "latest":
            raise ValueError("watch evaluates every step: leave step out")


def evaluate(request: Evaluation) -> Path:
    """Evaluate as requested; returns the path of the results of the last step."""
    suites = chosen_suites(request)
    run = EvalRun(
        request.run_dir,
        request.split,
        given=request.given,
        decoding=request.decoding,
        mesh=request.mesh,
        seed=request.seed,
        say=command_line.say,
    )
    results = Results(request.run_dir)
    with jax.set_mesh(run.mesh):
        for suite in suites.values():
            suite.check(run.context)
    for step in results.steps():
        results.read(step)  # damage shows before anything is computed
    results.check_writable()
    skip = request.suite in (DEFAULT, ("all",))
    evaluate_step = functools.partial(_evaluate, run, results, suites, skip)
    if not request.watch and request.step != "all":
        return evaluate_step(None if request.step == "latest" else int(request.step))
    with preemption_guard() as asked_to_stop:
        if request.watch:
            return _watch(run, results, suites, evaluate_step, asked_to_stop)
        steps = run.folder.steps
        if not steps:
            raise UserError(f"{request.run_dir} has no checkpoint yet; with watch=true the first is waited for")
        damaged = []
        for number, step in enumerate(steps):
            if asked_to_stop():
                raise Preempted(f"stopped before step {step}")
            command_line.say(f"[{number + 1}/{len(steps)}] step {step}")
            if _try(run, evaluate_step, step) is None and step in run.folder.steps:
                damaged.append(str(step))
        if damaged:
            raise UserError(
                f"{request.run_dir} has damaged checkpoints, {', '.join(damaged)}; all others are evaluated"
            )
        done = results.steps()
        if not done:
            raise NoCheckpoint(f"every checkpoint of {request.run_dir} was removed before it could be evaluated")
        return results.path(done[-1])


def chosen_suites(request: Evaluation) -> dict[str, Suite]:
    """The suites that are evaluated, by name.

    Raises UserError for a name that there is not, and for options of a suite that is not evaluated.
    """
    names = [*request.suites] if request.suite == ("all",) else [*dict.fromkeys(request.suite)]
    unknown = [name for name in names if name not in request.suites]
    if unknown or not names:
        problem = f"suite={unknown[0]} is unknown" if unknown else "suite names nothing"
        raise UserError(f"{problem}; there are {', '.join(request.suites)}, and all")
    for name, suite in request.suites.items():
        if name not in names and _changed(suite):
            key = next(iter(_changed(suite)))
            raise UserError(
                f"suites.{name}.{key} is set, but suite={name} is not evaluated; add it, or leave {key} out"
            )
    return {name: request.suites[name] for name in names}


def _changed(suite: Suite) -> dict[str, Any]:
    """The options of a suite that differ from its defaults."""
    default = type(suite)()
    options = {name: getattr(suite, name) for name in chz.chz_fields(suite)}
    return {name: value for name, value in options.items() if value != getattr(default, name)}


def _words(name: str, suite: Suite) -> str:
    """A suite with its options as results keep them; runs by their folders' names."""
    words = []
    for key, value in sorted(_changed(suite).items()):
        if isinstance(value, Mapping):
            value = tuple(f"{each}:{Path(run).name}" for each, run in sorted(value.items()))
        words.append(f"{key}={text(value)}")
    return " ".join([name, *words])


def _evaluate(run: EvalRun, results: Results, suites: Mapping[str, Suite], skip: bool, step: int | None) -> Path:
    """Evaluates one checkpoint; returns the path of its results.

    Suites that have nothing to evaluate are an error where they are not to be skipped.
    """
    checkpoint = run.open(step)
    path, key_metrics = None, {}
    for name, suite in suites.items():
        command_line.say(f"step {checkpoint.step}: {name}")
        with jax.set_mesh(run.mesh):
            result = suite.run(run.context, checkpoint)
        if result is None and not skip:
            raise UserError(f"suite={name} has nothing to evaluate in {run.run_dir}; leave it out: {suite.missing}")
        # Each as it is finished: whoever is interrupted keeps what there was.
        path = results.add(
            checkpoint.step,
            run.label,
            {} if result is None else {name: result.clustered(run.context.clusters)},
            name=run.experiment.name,
            fingerprint=run.fingerprint,
            data={run.context.split: run.context.records.fingerprint},
            requests=[_words(name, suite)],
        )
        if result is None:
            command_line.say(f"step {checkpoint.step}: {name} skipped, {suite.missing}")
            continue
        stored = results.read(checkpoint.step)["metrics"]
        metrics = {
            metric: Metric(**stored[f"{run.label}/{metric}"])
            for metric in (*result.statistics, *result.figures)
            if f"{run.label}/{metric}" in stored
        }
        key = {metric: each for metric, each in metrics.items() if suite.is_key(metric) and each.value is not None}
        _show(run.label, key, len(metrics) - len(key), results.page)
        key_metrics |= key
    assert path is not None
    for line in _verdict(key_metrics):
        command_line.say(line)
    command_line.say(f"page: {results.page}")
    return path


def _show(label: str, metrics: Mapping[str, Metric], others: int, page: Path) -> None:
    """Prints key metrics, "LABEL/OUTPUT/METRIC"."""
    width = max(map(len, metrics), default=0) + len(label) + 1
    for name, metric in sorted(metrics.items()):
        shown = f"{label}/{name}"
        command_line.say(f"  {shown:{width}}  {_value(metric, '  ')}  of {metric.examples} examples")
    if others:
        command_line.say(f"  {others} more in {page}")


def _value(metric: Metric, gap: str = " ") -> str:
    interval = "" if metric.low is None else f"{gap}[{metric.low:.4g}, {metric.high:.4g}]"
    return f"{metric.value:.4g}{interval}"


def _verdict(metrics: Mapping[str, Metric]) -> list[str]:
    """A line about every output: the metrics that sum it up, with their intervals."""
    outputs: dict[str, list[str]] = {}
    for name, metric in metrics.items():
        output, _, short = name.rpartition("/")
        if name.count("/") == 1 and (short in KEY_METRICS or short.endswith(("recall@1", "fid"))):
            outputs.setdefault(output, []).append(f"{short} {_value(metric)}")
    return [f"{output}: {', '.join(parts)}" for output, parts in outputs.items()]


def _try(run: EvalRun, evaluate_step: Callable[[int], Path], step: int) -> Path | None:
    """Evaluates one checkpoint; None, with a message, where it is damaged or was removed meanwhile."""
    try:
        return evaluate_step(step)
    except NoCheckpoint as error:
        there = step in run.folder.steps
        command_line.say(
            str(error) if there else f"checkpoint {step} is gone: the run removed it before it could be evaluated"
        )
        return None


def _watch(
    run: EvalRun,
    results: Results,
    suites: Mapping[str, Suite],
    evaluate_step: Callable[[int], Path],
    asked_to_stop: Callable[[], bool],
) -> Path:
    """Evaluates checkpoints as they appear, without those evaluated before, until the run is complete."""
    every, requests = run.experiment.checkpoint.every, [_words(*item) for item in suites.items()]
    settled: set[int] = {step for step in results.steps() if results.has(step, run.label, requests)}
    waiting = False
    while True:
        complete = run.folder.is_complete  # before looking for checkpoints: none appears after
        steps = run.folder.steps
        # The run saves at least as often as this; what came and went unseen is named, too.
        missed = set(range(every, max(steps, default=0), every)) - set(steps) - settled
        for step in sorted(missed):
            command_line.say(f"checkpoint {step} is gone: the run removed it before it could be evaluated")
        settled |= missed
        new = [step for step in steps if step not in settled]
        for step in new[:1]:
            command_line.say(f"evaluating step {step}")
            _try(run, evaluate_step, step)
            settled.add(step)
            waiting = False
        if asked_to_stop():
            raise Preempted("stopped; the same command goes on")
        if not new and complete:
            done = results.steps()
            if not done:
                raise NoCheckpoint(f"{run.run_dir} is complete and has no checkpoint that could be evaluated")
            return results.path(done[-1])
        if not new:
            if not waiting:
                command_line.say("waiting for the next checkpoint")
            waiting = True
            time.sleep(PATIENCE)


ABOUT = "Evaluate a run's checkpoints on a held-out split; `compare RUN_A RUN_B`, in place of RUN_DIR, compares runs."


def _request(name: str) -> Evaluation:
    """The evaluation of RUN_DIR or RUN_DIR@STEP."""
    run_dir, at, step = name.rpartition("@")
    return Evaluation(run_dir=run_dir, step=step) if at and step_of(step) is not None else Evaluation(run_dir=name)


SUBJECTS = command_line.Subjects("run_dir", command_line.runs, _request, others=True, keys=Evaluation)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["compare"]:
        return compare.main(words[1:])
    return command_line.main(evaluate, ABOUT, words, SUBJECTS)


if __name__ == "__main__":
    prefer_huge_pages()
    sys.exit(main())
