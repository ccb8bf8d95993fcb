"""Compare runs, or steps of one, on the same examples: `python -m launch.evaluate compare RUN_A RUN_B[@STEP] [...]`.

Every run is compared with the first. The last line on standard output is the path of comparison.json; report.html
beside it shows by how much, how surely, and where they disagree.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import chz

from mmjax.errors import UserError
from mmjax.files import local_path, make_folder, step_of, write_atomic

from . import command_line
from .generate import runs
from .session import Session

RESULT, PAGE = "comparison.json", "report.html"


@chz.chz
class Comparison:
    """Which runs are compared, on what."""

    runs: tuple[str, ...] = chz.field(doc="run directories, each with @STEP or the newest checkpoint")
    split: str = chz.field(default="test", doc="which of the source's splits")
    given: str | None = chz.field(
        default=None, doc="the modalities that the models may see, separated by commas; None: all"
    )
    out: str = chz.field(
        default=None,
        x_type=str | None,
        converter=chz.mungers.if_none(lambda request: _folder(request)),
        doc="where everything goes",
    )


def compare(request: Comparison) -> Path:
    """Compare as asked; returns the path of the result."""
    import jax

    from mmjax.evaluation.comparison import Contender, compare_figures, comparison_table, disagreements, verdict
    from mmjax.reports.page import Section, render

    from .evaluate import Evaluation

    with make_folder(local_path(request.out)) as folder:
        sessions: dict[str, tuple[Session, int | None]] = {}
        for said in request.runs:
            run_dir, at, step = said.partition("@")
            if at and step_of(step) is None:
                raise UserError(f"{said}: after @ must come a checkpoint's number")
            session = Session(
                Evaluation(run_dir=run_dir, split=request.split, given=request.given, step=step or "latest")
            )
            if said in sessions:
                raise UserError(f"{said} is named twice; name another run, or another step of it as RUN@STEP")
            sessions[said] = session, int(step) if step else None
            data, _ = sessions[request.runs[0]]
            if session.records.fingerprint != data.records.fingerprint:
                raise UserError(
                    f"{said} and {request.runs[0]} have other {request.split} data, and cannot be compared on it"
                )
        contenders: list[Contender] = []
        steps, fingerprints = {}, {}
        seen: set[tuple[Path, int]] = set()
        for said, (session, step) in sessions.items():
            command_line.say(f"evaluating {said}")
            subject = session.open(step)
            place = session.run_dir.resolve(), subject.step
            if place in seen:
                raise UserError(f"{said} is named twice, at step {subject.step}; say which steps as RUN@STEP")
            seen.add(place)
            name = f"{session.run_dir.name}@{subject.step}"
            if name in steps:  # a run of the same name in another folder
                name = f"{session.run_dir}@{subject.step}"
            with jax.set_mesh(session.mesh):
                contenders.append(Contender(name, subject.outcome, subject.standard))
            steps[name], fingerprints[name] = subject.step, session.fingerprint
    data, _ = sessions[request.runs[0]]
    first, *others = contenders
    comparisons, sections = {}, []
    for other in others:
        compared = compare_figures(first, other)
        if not compared:
            raise UserError(f"{first.name} and {other.name} have no figure in common: they say different things")
        comparisons[other.name] = {name: dataclasses.asdict(each) for name, each in compared.items()}
        decided = verdict(compared, first.name, other.name)
        command_line.say(decided)
        about = (
            f"{decided} Differences are {first.name} less {other.name} on the same examples: 95% by paired bootstrap, "
            "p by the paired randomisation test."
        )
        table = comparison_table(compared, first.name, other.name)
        sections.append((f"{first.name} and {other.name}", Section("", about, [table])))
        shown = disagreements(first, other, data.data, data.experiment.data_dir, request.split)
        sections += [(f"{part.title}: {first.name} and {other.name}", part) for part in shown]
    page = render(
        "evaluation.html",
        title=" and ".join(steps),
        fingerprint=", ".join(fingerprints.values()),
        facts={"split": request.split, "examples": len(first.outcome.ids), "data": data.records.fingerprint},
        groups={},
        panels=[],
        panels_left_out=[],
        sections=sections,
    )
    write_atomic(folder / PAGE, page)
    whole = {
        "runs": list(request.runs),
        "steps": steps,
        "fingerprints": fingerprints,
        "data": {request.split: data.records.fingerprint},
        "examples": len(first.outcome.ids),
        "first": first.name,
        "against": comparisons,
    }
    return write_atomic(folder / RESULT, json.dumps(whole, indent=2) + "\n")


def _request(names: Sequence[str]) -> Comparison:
    """Raises UserError where there is nothing to compare with."""
    if len(names) < 2:
        raise UserError(f"compare needs two run directories or more, and got {names[0]} alone")
    return Comparison(runs=tuple(names))


def _folder(request: Comparison) -> str:
    """A name for these runs and no others."""
    places = [run.partition("@") for run in request.runs]
    names = [Path(path).name + at + step for path, at, step in places]
    whole = "\n".join(
        [request.split, str(request.given), *(str(Path(path).resolve()) + at + step for path, at, step in places)]
    )
    return str(Path("comparisons", f"{'-'.join(names)}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"))


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    names = [word for word in argv if "=" not in word and not word.startswith("-")]
    rest = [word for word in argv if word not in names]
    form = "compare RUN_A RUN_B[@STEP] [...]"
    subjects = command_line.Subjects("run", runs, lambda _: _request(names), others=True, form=form)
    words = [" ".join(names), *rest] if names else rest
    return command_line.main(compare, "Compare runs on the same examples.", words, subjects)
