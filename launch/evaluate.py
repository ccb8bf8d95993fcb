"""Evaluate a run's checkpoints on held-out data: `python -m launch.evaluate RUN_DIR [step=all|watch=true] [suite=...]`.

The run may still be going on. The last line on standard output is the path of evaluations/STEP.json, which holds what
every such command has found of the step; evaluations/report.html shows it. `compare RUN_A RUN_B` in place of a run
directory compares runs: see `launch.compare`.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import chz

from mmjax.errors import NoCheckpoint, Preempted, UserError
from mmjax.files import read_json, step_of
from mmjax.generators import Decoding
from mmjax.sharding.mesh import MeshShape
from mmjax.signals import preemption_guard

from . import command_line, compare
from .generate import runs
from .huge_pages import prefer_huge_pages
from .session import Session
from .suites import DEFAULT, SUITES, choose_suites

# Between two looks at a run's folder, seconds.
PATIENCE = 1.0
# Keys that only some suites read.
READ_BY = {
    "readers": ("generation",),
    "examples": ("generation", "attribution"),
    "slices": ("slices",),
    "at": ("probe",),
    "labels": ("probe", "zero_shot"),
    "templates": ("zero_shot",),
}


@chz.chz
class Evaluation:
    """Whose model is evaluated, on what, and who reads what it makes."""

    run_dir: str = chz.field(doc="the run whose model it is")
    split: str = chz.field(default="test", doc="which of the source's splits")
    step: str = chz.field(default="latest", doc="the checkpoint, by its number; latest, or all there are")
    watch: bool = chz.field(default=False, doc="evaluate every checkpoint as it appears, until the run is complete")
    suite: tuple[str, ...] = chz.field(default=DEFAULT, doc=f"what is evaluated: some of {', '.join(SUITES)}, or all")
    given: str | None = chz.field(
        default=None, doc="the modalities that the model may see, separated by commas; None: all"
    )
    readers: Mapping[str, str] = chz.field(
        default_factory=dict, doc="finished runs that read what is made, by its modality"
    )
    examples: int | None = chz.field(
        default=None, doc="so many evenly spread ones are made or explained; None: all are made, and 64 explained"
    )
    slices: tuple[str, ...] | None = chz.field(
        default=None, doc="fields that tell kinds of examples apart; None: all that do"
    )
    at: tuple[str, ...] = chz.field(
        default=("pooled",), doc="the intermediates that probes read, such as encoders/image"
    )
    labels: tuple[str, ...] | None = chz.field(
        default=None, doc="what probes and descriptions tell apart; None: all labels of the data"
    )
    templates: tuple[str, ...] = chz.field(
        default=("{}", "a {}", "a picture of a {}"), doc="how classes are described, their names for {}"
    )
    decoding: Decoding | None = chz.field(
        default=None, doc="how texts, and the codes of pictures, are written; None: as the run does"
    )
    mesh: MeshShape = chz.field(default=MeshShape(), doc="devices of this evaluation, whatever the run has")
    seed: int = chz.field(default=0, doc="what draws follow from")

    @chz.validate
    def _some(self) -> None:
        if self.examples is not None and self.examples < 1:
            raise ValueError("examples must be at least 1")
        if self.seed < 0:
            raise ValueError("seed must not be negative")
        if self.step not in ("latest", "all") and step_of(self.step) is None:
            raise ValueError(f"step={self.step} must be a checkpoint's number, latest, or all")
        if self.watch and self.step != "latest":
            raise ValueError("watch evaluates every step: leave step out")


def evaluate(request: Evaluation) -> Path:
    """Evaluate as asked; returns the path of the results of the last step."""
    from mmjax.checkpoint.restore import saved_steps
    from mmjax.evaluation.results import Results

    suites = _asked(request, choose_suites(request.suite))
    session, results = Session(request), Results(request.run_dir)
    for step in results.steps():
        results.read(step)  # damage shows before anything is computed
    results.check_writable()
    if not request.watch and request.step != "all":
        return _evaluate(session, suites, None if request.step == "latest" else int(request.step))
    with preemption_guard() as asked_to_stop:
        if request.watch:
            return _watch(session, suites, asked_to_stop)
        steps = saved_steps(session.run_dir)
        if not steps:
            raise UserError(f"{request.run_dir} has no checkpoint yet; with watch=true the first is waited for")
        damaged = []
        for number, step in enumerate(steps):
            if asked_to_stop():
                raise Preempted(f"stopped before step {step}")
            command_line.say(f"[{number + 1}/{len(steps)}] step {step}")
            if _try(session, suites, step) is None and step in saved_steps(session.run_dir):
                damaged.append(str(step))
        if damaged:
            raise UserError(
                f"{request.run_dir} has damaged checkpoints, {', '.join(damaged)}; all others are evaluated"
            )
        done = results.steps()
        if not done:
            raise NoCheckpoint(f"every checkpoint of {request.run_dir} was removed before it could be evaluated")
        return results.path(done[-1])


def _asked(request: Evaluation, suites: Sequence[str]) -> dict[str, str]:
    """What is asked of each suite: its name, with what its keys say that is not the default.

    Raises UserError for a key that no suite asked for would read.
    """
    default = Evaluation(run_dir=request.run_dir)
    changed = [key for key in READ_BY if getattr(request, key) != getattr(default, key)]
    for key in changed:
        if not set(READ_BY[key]).intersection(suites):
            users = " or ".join(READ_BY[key])
            raise UserError(f"{key} is for suite={users}, which is not asked for; add it, or leave {key} out")
    keys = {
        suite: [f"{key}={_plain(getattr(request, key))}" for key in changed if suite in READ_BY[key]]
        for suite in suites
    }
    return {suite: " ".join([suite, *words]) for suite, words in keys.items()}


def _plain(value: Any) -> str:
    """A key's value as it is typed; runs by their folders' names."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}:{Path(each).name}" for name, each in sorted(value.items()))
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _evaluate(session: Session, suites: Mapping[str, str], step: int | None) -> Path:
    """Evaluates one checkpoint by suites, each with what is asked of it; returns the path of its results."""
    import jax

    from mmjax.evaluation.results import Results

    subject, results = session.open(step), Results(session.run_dir)
    path = None
    for suite, asked in suites.items():
        command_line.say(f"step {subject.step}: {suite}")
        with jax.set_mesh(session.mesh):
            findings = SUITES[suite].run(session, subject)
        if findings is None and session.request.suite not in (DEFAULT, ("all",)):
            raise UserError(f"suite={suite} has nothing to judge in {session.request.run_dir}; leave it out")
        # Each as it is finished: whoever is interrupted keeps what there was.
        path = results.add(
            subject.step,
            session.label,
            {} if findings is None else {suite: findings.clustered(session.clusters)},
            name=session.experiment.name,
            fingerprint=session.fingerprint,
            data={session.request.split: session.records.fingerprint},
            readers={target: reader.name for target, reader in session.readers.items()},
            asked=[asked],
        )
        if findings is None:
            command_line.say(f"step {subject.step}: {suite} skipped, {SUITES[suite].none}")
            continue
        names = {f"{session.label}/{name}" for name in (*findings.statistics, *findings.figures)}
        _show(
            {name: figure for name, figure in results.read(subject.step)["metrics"].items() if name in names},
            results.page,
        )
    assert path is not None
    return path


def _show(figures: Mapping[str, dict[str, Any]], page: Path) -> None:
    """Prints the figures of every output as a whole, "LABEL/OUTPUT/FIGURE", and none of their parts."""
    short = {name: figure for name, figure in figures.items() if name.count("/") == 2 and figure["value"] is not None}
    width = max(map(len, short), default=0)
    for name, figure in sorted(short.items()):
        interval = "" if figure["low"] is None else f"  [{figure['low']:.4g}, {figure['high']:.4g}]"
        command_line.say(f"  {name:{width}}  {figure['value']:.4g}{interval}  of {figure['examples']} examples")
    if len(figures) > len(short):
        command_line.say(f"  {len(figures) - len(short)} more in {page}")


def _try(session: Session, suites: Mapping[str, str], step: int) -> Path | None:
    """Evaluates one checkpoint that the run may remove at any time; None, saying so, where that cannot be."""
    from mmjax.checkpoint.restore import saved_steps

    try:
        return _evaluate(session, suites, step)
    except NoCheckpoint as error:
        there = step in saved_steps(session.run_dir)
        command_line.say(
            str(error) if there else f"checkpoint {step} is gone: the run removed it before it could be evaluated"
        )
        return None


def _watch(session: Session, suites: Mapping[str, str], asked_to_stop: Callable[[], bool]) -> Path:
    """Evaluates checkpoints as they appear, those that were evaluated before left out, until the run is complete."""
    from mmjax.checkpoint.restore import saved_steps
    from mmjax.evaluation.results import Results

    results, every = Results(session.run_dir), session.experiment.checkpoint.every
    settled: set[int] = {step for step in results.steps() if results.has(step, session.label, suites.values())}
    waiting = False
    while True:
        complete = _complete(session)  # before looking for checkpoints: none appears after
        steps = saved_steps(session.run_dir)
        # The run saves at least as often as this; what came and went unseen is named, too.
        missed = set(range(every, max(steps, default=0), every)) - set(steps) - settled
        for step in sorted(missed):
            command_line.say(f"checkpoint {step} is gone: the run removed it before it could be evaluated")
        settled |= missed
        new = [step for step in steps if step not in settled]
        for step in new[:1]:
            command_line.say(f"evaluating step {step}")
            _try(session, suites, step)
            settled.add(step)
            waiting = False
        if asked_to_stop():
            raise Preempted("stopped; the same command goes on")
        if not new and complete:
            done = results.steps()
            if not done:
                raise NoCheckpoint(
                    f"{session.request.run_dir} is complete and has no checkpoint that could be evaluated"
                )
            return results.path(done[-1])
        if not new:
            if not waiting:
                command_line.say("waiting for the next checkpoint")
            waiting = True
            time.sleep(PATIENCE)


def _complete(session: Session) -> bool:
    """Whether the run has come to its end."""
    try:
        return read_json(session.run_dir / "summary.json")["step"] >= session.experiment.train.steps
    except (OSError, ValueError, KeyError, TypeError):
        return False


ABOUT = "Evaluate a run's checkpoints on a held-out split; `compare RUN_A RUN_B`, in place of RUN_DIR, compares runs."
SUBJECTS = command_line.Subjects("run_dir", runs, lambda run_dir: Evaluation(run_dir=run_dir), others=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["compare"]:
        return compare.main(words[1:])
    return command_line.main(evaluate, ABOUT, words, SUBJECTS)


if __name__ == "__main__":
    prefer_huge_pages()
    sys.exit(main())
