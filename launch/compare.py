"""Compare runs, or steps of one, on the same examples.

    python -m launch.evaluate compare RUN_A RUN_B[@STEP] [...]

Every run is compared with the first. The last line on standard output is the path of comparison.json; report.html
beside it shows by how much, how surely, and where they disagree.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import chz
import jax

from mmjax.errors import UserError
from mmjax.evaluation.comparison import (
    Contender,
    compare_metrics,
    comparison_table,
    disagreements,
    key_lines,
    verdict,
)
from mmjax.evaluation.run import EvalRun
from mmjax.evaluation.suites.standard import evaluate_standard
from mmjax.files import local_path, make_folder, step_of, write_atomic
from mmjax.reports.page import Section, write_page

from . import command_line

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
        doc="where everything goes; by default a folder of its own in ./comparisons",
    )


def compare(request: Comparison) -> Path:
    """Compare as requested; returns the path of the result."""
    with make_folder(local_path(request.out)) as folder:
        contenders, runs = _contenders(request, _open(request))
        first, *others = contenders
        context = runs[0].context
        comparisons, sections = {}, []
        verdicts = []
        for other in others:
            compared = compare_metrics(first, other)
            if not compared:
                raise UserError(f"{first.name} and {other.name} have no metric in common: their outputs differ")
            comparisons[other.name] = {name: dataclasses.asdict(each) for name, each in compared.items()}
            decided = verdict(compared, first.name, other.name)
            verdicts.append(f"{first.name} and {other.name}: {decided}")
            verdicts += [f"  {line}" for line in key_lines(compared)]
            about = (
                f"{decided} Differences are {first.name} less {other.name} on the same examples: 95% by paired "
                "bootstrap, p by the paired randomisation test."
            )
            table = comparison_table(compared, first.name, other.name)
            both = f"{first.name} and {other.name}"
            sections.append(Section(both, about, [table]))
            shown = disagreements(first, other, context)
            sections += [dataclasses.replace(part, title=f"{part.title}: {both}") for part in shown]
        steps = {contender.name: contender.step for contender in contenders}
        fingerprints = {contender.name: run.fingerprint for contender, run in zip(contenders, runs, strict=True)}
        facts = {"split": request.split, "examples": len(first.result.ids), "data": context.records.fingerprint}
        facts |= {"fingerprints": ", ".join(fingerprints.values())}
        path = write_page(folder / PAGE, f"Comparison of {' and '.join(steps)}", facts, sections)
        for line in [*verdicts, f"page: {path}"]:
            command_line.say(line)
        whole = {
            "runs": list(request.runs),
            "steps": steps,
            "fingerprints": fingerprints,
            "data": {request.split: context.records.fingerprint},
            "examples": len(first.result.ids),
            "first": first.name,
            "against": comparisons,
        }
        return write_atomic(folder / RESULT, json.dumps(whole, indent=2) + "\n")


def _open(request: Comparison) -> dict[str, tuple[EvalRun, int | None]]:
    """The runs with the steps asked for. Raises UserError where one is named twice or has other data."""
    opened: dict[str, tuple[EvalRun, int | None]] = {}
    for name in request.runs:
        run_dir, at, step = name.partition("@")
        if at and step_of(step) is None:
            raise UserError(f"{name}: expected a checkpoint's step after @, as in RUN@STEP")
        run = EvalRun(run_dir, request.split, given=request.given)
        if name in opened:
            raise UserError(f"{name} is named twice; name another run, or another step of it as RUN@STEP")
        opened[name] = run, int(step) if step else None
        first, _ = opened[request.runs[0]]
        if run.context.records.fingerprint != first.context.records.fingerprint:
            raise UserError(
                f"{name} and {request.runs[0]} have other {request.split} data, and cannot be compared on it"
            )
    return opened


def _contenders(
    request: Comparison, opened: Mapping[str, tuple[EvalRun, int | None]]
) -> tuple[list[Contender], list[EvalRun]]:
    """The predictions and metrics of every checkpoint, with its run."""
    contenders: dict[tuple[Path, int], Contender] = {}
    for name, (run, wanted) in opened.items():
        command_line.say(f"evaluating {name}")
        checkpoint = run.open(wanted)
        place = run.run_dir.resolve(), checkpoint.step
        if place in contenders:
            raise UserError(f"{name} is named twice, at step {checkpoint.step}; say which steps as RUN@STEP")
        short = f"{run.run_dir.name}@{checkpoint.step}"
        if short in {contender.name for contender in contenders.values()}:  # a run of the same name in another folder
            short = f"{run.run_dir}@{checkpoint.step}"
        with jax.set_mesh(run.mesh):
            standard = evaluate_standard(run.context, checkpoint)
            contenders[place] = Contender(short, checkpoint.step, checkpoint.result, standard)
    return list(contenders.values()), [run for run, _ in opened.values()]


def _request(names: Sequence[str]) -> Comparison:
    """Raises UserError where there is nothing to compare with."""
    if len(names) < 2:
        raise UserError(f"compare needs two run directories or more, and got {names[0]} alone")
    return Comparison(runs=tuple(names))


def _folder(request: Comparison) -> str:
    """A name for these runs and no others."""
    places = [run.partition("@") for run in request.runs]
    names = [Path(path).name + at + step for path, at, step in places]
    whole = [str(Path(path).resolve()) + at + step for path, at, step in places]
    return command_line.own_folder("comparisons", "-".join(names), request.split, str(request.given), *whole)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    names = [word for word in argv if "=" not in word and not word.startswith("-")]
    rest = [word for word in argv if word not in names]
    form = "compare RUN_A RUN_B[@STEP] [...]"
    subjects = command_line.Subjects("run", command_line.runs, lambda _: _request(names), others=True, form=form)
    words = [" ".join(names), *rest] if names else rest
    return command_line.main(compare, "Compare runs on the same examples.", words, subjects)
