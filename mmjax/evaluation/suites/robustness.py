"""Whether outputs use a modality at all, and what they are without it: hidden, in noise, or that of another example."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Literal, get_args

import jax

from mmjax.data.clean import BadInput
from mmjax.data.device_batches import rows_of
from mmjax.data.loader import Loader, set_example
from mmjax.evaluation.eval_result import EvalResult, targets_of
from mmjax.evaluation.evaluator import Evaluator
from mmjax.evaluation.noise import corrupt
from mmjax.evaluation.suite_result import SuiteResult
from mmjax.evaluation.suites.standard import key_figures
from mmjax.metrics.statistics import Statistic, compare
from mmjax.model import Multimodal
from mmjax.reports.page import Section, Table
from mmjax.types import Batch

Change = Literal["without", "noised", "swapped"]


def judge_robustness(
    model: Multimodal,
    evaluator: Evaluator,
    split: str,
    intact: SuiteResult,
    judge: Callable[[Multimodal, EvalResult], SuiteResult],
) -> SuiteResult:
    """Key figures of the outputs that see a modality, with that modality changed: "OUTPUT/CHANGE_MODALITY/FIGURE".

    without   hidden from every output
    noised    with noise as strong as the signal, see `corrupt`
    swapped   that of the example half the split further on, so that nothing is unusual about it by itself

    A figure that is no worse swapped than intact is of a model that does not use the modality.
    """
    statistics: dict[str, Statistic] = {}
    sections = []
    for modality in model.encoders:
        targets = targets_of(model).items()
        seeing = {
            name for name, target in targets if target != modality and modality not in model.hidden_modalities[name]
        }
        known = {name: figure for name, figure in key_figures(intact).items() if name.partition("/")[0] in seeing}
        if not known:
            continue
        rows = [["intact", *(f"{figure.value:.4f}" for figure in known.values())]]
        for change in get_args(Change):
            if change == "without":
                (outcome,) = evaluator.evaluate(model.without_modalities({modality}), split)
            elif change == "noised":
                features, amounts = evaluator.data.features, {modality: 1.0}
                noise = jax.jit(functools.partial(corrupt, features=features, amounts=amounts))
                (outcome,) = evaluator.evaluate(model, split, change=noise)
            else:
                (outcome,) = evaluator.evaluate(model, split, loader=Swapped(evaluator, split, modality))
            found = key_figures(judge(model, outcome))
            cells = []
            for name, before in known.items():
                after = found[name]
                output, _, figure = name.partition("/")
                statistics[f"{output}/{change}_{modality}/{figure}"] = after
                cells.append(_beside(after, before))
            rows.append([change, *cells])
        sections.append(Section(f"Without {modality}", ABOUT, [Table([modality, *known], rows)]))
    return SuiteResult(statistics, {}, sections)


ABOUT = (
    "In brackets the change and its 95% interval, by bootstrap over examples or clusters of them. If nothing changes "
    "where a modality is swapped for another example's, it is not used."
)


def _beside(after: Statistic, before: Statistic) -> str:
    change = compare(after, before)
    return f"{after.value:.4f} ({change.value:+.4f}, {change.low:+.4f} to {change.high:+.4f})"


class Swapped(Loader):
    """Batches of a whole split in which one modality is that of another example; the same on any number of devices."""

    def __init__(self, evaluator: Evaluator, split: str, modality: str):
        size = evaluator.batch_size
        super().__init__(evaluator.data, evaluator.data_dir, split, size, rows=rows_of(evaluator.sharding, size))
        self._modality = modality

    def _read(self, batch: Batch, place: int, index: int, position: int) -> Iterator[tuple[str, str]]:
        yield from super()._read(batch, place, index, position)
        other = (index + len(self.records) // 2) % len(self.records)
        input, raw = self.data.inputs[self._modality], self.records[other]
        # Where the other example has none, neither has this one.
        batch.present[self._modality][place] = False
        value = raw.get(input.field or self._modality)
        if value is not None:
            with contextlib.suppress(BadInput):
                set_example(batch, place, self._modality, *input.read(value, None))
