"""The suite `robustness`: key metrics with a modality hidden, noised, or swapped."""

import contextlib
import functools
from collections.abc import Iterator

import chz
import jax

from mmjax.data.clean import BadInput
from mmjax.data.loader import Found, Loader
from mmjax.evaluation.context import EvalContext
from mmjax.evaluation.eval_result import EvalResult, truth_features
from mmjax.evaluation.noise import corrupt
from mmjax.evaluation.run import EvalCheckpoint
from mmjax.evaluation.suite_result import SuiteResult
from mmjax.evaluation.suites.base import Suite
from mmjax.evaluation.suites.standard import KEY_METRICS, evaluate_standard, key_metrics, standard_metrics
from mmjax.metrics.statistics import Statistic, compare_paired
from mmjax.reports.page import Section, Table

CONDITIONS = ("without", "noised", "swapped")
ABOUT = (
    "Changes with their 95% intervals, by bootstrap over examples or clusters of them. If nothing changes where a "
    "modality is swapped for another example's, it is not used."
)


@chz.chz
class Robustness(Suite):
    """Key metrics with each modality hidden, noised, or swapped for another example's.

    As "OUTPUT/CONDITION_MODALITY/METRIC", of the outputs that see the modality:

    without   hidden from every output
    noised    with noise as strong as the signal, see `corrupt`
    swapped   that of the example half the split further on, so that nothing is unusual about it by itself

    A metric that is no worse swapped than intact is of a model that does not use the modality.
    """

    def is_key(self, metric: str) -> bool:
        return metric.rpartition("/")[2] in KEY_METRICS[:-1]

    def run(self, context: EvalContext, checkpoint: EvalCheckpoint) -> SuiteResult:
        statistics: dict[str, Statistic] = {}
        sections = []
        model = checkpoint.model
        for modality in model.encoders:
            seeing = {
                name
                for name, target in truth_features(model).items()
                if target != modality and modality not in model.hidden_modalities[name]
            }
            intact = key_metrics(evaluate_standard(context, checkpoint))
            intact = {name: metric for name, metric in intact.items() if name.partition("/")[0] in seeing}
            if not intact:
                continue
            changed = {
                condition: key_metrics(
                    standard_metrics(context, model, _evaluate(context, checkpoint, modality, condition))
                )
                for condition in CONDITIONS
            }
            rows = []
            for name, before in intact.items():
                output, _, metric = name.partition("/")
                rows.append([name, "intact", f"{before.value:.4f}", ""])
                for condition, metrics in changed.items():
                    after = metrics[name]
                    statistics[f"{output}/{condition}_{modality}/{metric}"] = after
                    change = compare_paired(after, before)
                    interval = f"{change.value:+.4f} ({change.low:+.4f} to {change.high:+.4f})"
                    rows.append(["", condition, f"{after.value:.4f}", interval])
            table = Table(["metric", modality, "value", "change (95%)"], rows)
            sections.append(Section(f"Robustness: {modality}", ABOUT, [table]))
        return SuiteResult(statistics, {}, sections)


def _evaluate(context: EvalContext, checkpoint: EvalCheckpoint, modality: str, condition: str) -> EvalResult:
    """What the model predicts under one of CONDITIONS."""
    model, evaluator = checkpoint.model, checkpoint.evaluator
    if condition == "without":
        (result,) = evaluator.evaluate(model.without_modalities({modality}))
    elif condition == "noised":
        noise = functools.partial(corrupt, features=context.features, amounts={modality: 1.0})
        (result,) = evaluator.evaluate(model, change=jax.jit(noise))
    else:
        (result,) = evaluator.evaluate(model, loader=Swapped(context, modality))
    return result


class Swapped(Loader):
    """Batches of a split in which one modality is another example's, on any number of devices."""

    def __init__(self, context: EvalContext, modality: str):
        plain = context.loader()
        super().__init__(plain.data, plain.data_dir, plain.split, plain.batch_size, rows=plain.rows)
        self._modality = modality

    def _read(self, index: int, id: str, position: int) -> Iterator[tuple[str, Found]]:
        for name, found in super()._read(index, id, position):
            if name != self._modality or isinstance(found, str):
                yield name, found
        other = (index + len(self.records) // 2) % len(self.records)
        input, raw = self.data.inputs_of(self.records.id(other)).get(self._modality), self.records[other]
        # Where the other example has none, neither has this one.
        value = None if input is None else raw.get(input.field or self._modality)
        if input is not None and value is not None:
            with contextlib.suppress(BadInput):
                yield self._modality, input.read(value, None)
