"""What can be evaluated of a checkpoint: the suites, by name."""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from mmjax.errors import UserError

from . import command_line
from .session import Session, Subject

if TYPE_CHECKING:
    from mmjax.evaluation.suite_result import SuiteResult

# Of every kind of thing made, so many are shown.
SHOWN = 16
# Examples whose answers are explained, where no other number is asked for.
EXPLAINED = 64


@dataclasses.dataclass(frozen=True)
class Suite:
    """What it tells, and how it is found out; None where a model has nothing of the kind, and what is said then."""

    about: str
    run: "Callable[[Session, Subject], SuiteResult | None]"
    none: str = "there is nothing to judge"


def _standard(session: Session, subject: Subject) -> "SuiteResult":
    return subject.standard


def _generation(session: Session, subject: Subject) -> "SuiteResult | None":
    from mmjax.evaluation.results import FOLDER, figures_of
    from mmjax.evaluation.suites.generation import evaluate_generation, makers
    from mmjax.reports.gallery import show_raw, write_gallery

    request, experiment = session.request, session.experiment
    able = makers(session.data.features, {name: experiment.model.outputs[name] for name in subject.model.outputs})
    for target in session.readers:
        if all(output.target != target for output in able.values()):
            made = ", ".join(output.target for output in able.values()) or "no picture and no sound"
            raise UserError(f"readers.{target} has nothing to read: the run makes {made} of {', '.join(session.given)}")
    if not able:
        return None
    unread = sorted({output.target_feature for output in able.values() if output.target_feature} - set(session.readers))
    if unread:
        keys = ", ".join(f"readers.{target}" for target in unread)
        command_line.say(f"{' and '.join(unread)} made anew will not be read back: name runs that do so by {keys}")
    generated = evaluate_generation(
        subject.model,
        able,
        session.data,
        experiment.data_dir,
        request.split,
        session.size,
        readers=session.readers,
        sharding=session.sharding,
        rules=session.rules,
        examples=request.examples,
        seed=request.seed,
    )
    pieces = {
        f"{name}-{kind}": [show_raw(raw) for raw in raws[:SHOWN]]
        for name, kinds in generated.raws.items()
        for kind, raws in kinds.items()
        if raws
    }
    if pieces:
        facts = {f"reader of {target}": reader for target, reader in generated.readers.items()}
        facts |= {name: figure.value for name, figure in figures_of(generated.findings).items()}
        place = session.run_dir / FOLDER / str(subject.step) / session.label.replace(", ", "-").replace(" ", "-")
        write_gallery(place, f"{experiment.name}, step {subject.step}: {session.label}", facts, {}, pieces)
    return generated.findings


def _robustness(session: Session, subject: Subject) -> "SuiteResult":
    from mmjax.evaluation.suites.robustness import judge_robustness

    return judge_robustness(subject.model, session.evaluator, session.request.split, subject.standard, session.judge)


def _slices(session: Session, subject: Subject) -> "SuiteResult":
    from mmjax.evaluation.suites.slices import find_kinds, judge_slices
    from mmjax.evaluation.suites.standard import key_figures

    kinds = find_kinds(session.records, session.data, session.request.slices)
    return judge_slices(key_figures(subject.standard), kinds)


def _probe(session: Session, subject: Subject) -> "SuiteResult | None":
    from mmjax.evaluation.suites.probe import probe

    request, experiment = session.request, session.experiment
    if request.labels is None and not _labels(session):
        return None
    return probe(
        subject.model,
        session.data,
        experiment.data_dir,
        request.split,
        session.size,
        sharding=session.sharding,
        rules=session.rules,
        at=request.at,
        labels=request.labels,
    )


def _zero_shot(session: Session, subject: Subject) -> "SuiteResult | None":
    from mmjax.evaluation.suite_result import SuiteResult
    from mmjax.evaluation.suites.probe import zero_shot
    from mmjax.heads.contrast import ContrastHead
    from mmjax.types import Text

    request, features = session.request, session.data.features
    texts = {name for name, feature in features.items() if isinstance(feature, Text)}
    alignments = {name: head for name, head in subject.model.outputs.items() if isinstance(head, ContrastHead)}
    found = [
        zero_shot(
            subject.model,
            session.data,
            session.experiment.data_dir,
            request.split,
            session.size,
            output=name,
            label=label,
            templates=request.templates,
            sharding=session.sharding,
            rules=session.rules,
        )
        for name, head in alignments.items()
        if texts.intersection(head.names)
        for label in request.labels or _labels(session)
    ]
    if not found:
        return None
    statistics = {name: statistic for each in found for name, statistic in each.statistics.items()}
    return SuiteResult(statistics, {}, [section for each in found for section in each.sections])


def _attribution(session: Session, subject: Subject) -> "SuiteResult | None":
    from mmjax.evaluation.suites.attribution import explain, explainable
    from mmjax.model import build_model

    request, experiment, model = session.request, session.experiment, subject.model
    if not explainable(model):
        return None
    fresh = functools.partial(build_model, model=experiment.model, features=session.data.features, rules=session.rules)
    return explain(
        model,
        session.data,
        experiment.data_dir,
        request.split,
        session.size,
        sharding=session.sharding,
        rules=session.rules,
        examples=request.examples or EXPLAINED,
        seed=request.seed,
        build=lambda key: fresh(key).without_modalities(session.hidden).with_outputs(model.outputs),
        say=lambda line: command_line.say(f"step {subject.step}: {line}"),
    )


def _labels(session: Session) -> list[str]:
    from mmjax.types import Label

    return [name for name, feature in session.data.features.items() if isinstance(feature, Label)]


SUITES = {
    "standard": Suite("what one pass over the split says of every output", _standard),
    "generation": Suite(
        "pictures and sounds made, through the eyes of readers and beside the true ones",
        _generation,
        "this run makes no pictures and no sounds",
    ),
    "robustness": Suite("with each modality hidden, noised, or swapped for another example's", _robustness),
    "slices": Suite("each kind of examples by itself: by speaker, by digit, by skin tone", _slices),
    "probe": Suite(
        "what features know of labels: linear probes, nearest neighbours, a few examples a class",
        _probe,
        "this run's data have no labels",
    ),
    "zero_shot": Suite(
        "classes told apart by their descriptions", _zero_shot, "this run aligns no texts with anything"
    ),
    "attribution": Suite(
        "what answers rest on: pixels, sounds, words, modalities", _attribution, "this run gives no answers to explain"
    ),
}
DEFAULT = ("standard", "generation")


def choose_suites(asked: tuple[str, ...]) -> list[str]:
    """The names of those asked for. Raises UserError for a name that there is not."""
    names = [*SUITES] if asked == ("all",) else [*dict.fromkeys(asked)]
    unknown = [name for name in names if name not in SUITES]
    if unknown or not names:
        told = f"suite={unknown[0]} is unknown" if unknown else "suite names nothing"
        raise UserError(f"{told}; there are {', '.join(SUITES)}, and all")
    return names
