"""Whether outputs use a modality at all, and what they are without it: hidden, in noise, or that of another example."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import numpy as np

from mmjax.data.clean import BadInput
from mmjax.data.loader import Loader, put
from mmjax.data.place import rows_of
from mmjax.evaluation.evaluator import Evaluator
from mmjax.evaluation.findings import Findings, Section, Table
from mmjax.evaluation.outcome import Outcome, targets_of
from mmjax.evaluation.standard import key_figures
from mmjax.evaluation.statistic import Statistic, compare
from mmjax.model import Multimodal
from mmjax.types import END, Batch, Text

Change = Literal["without", "noised", "swapped"]


def judge_robustness(
    model: Multimodal,
    evaluator: Evaluator,
    split: str,
    intact: Findings,
    judge: Callable[[Multimodal, Outcome], Findings],
) -> Findings:
    """Key figures of the outputs that see a modality, with that modality changed: "OUTPUT/CHANGE_MODALITY/FIGURE".

    without   hidden from every output
    noised    pictures, spectra, sounds and quantities with white noise as strong as the example's own values vary;
              half of a text's tokens replaced by random ones
    swapped   that of the example half the split further on, so that nothing is unusual about it by itself

    A figure that is no worse swapped than intact is of a model that does not use the modality.
    """
    statistics: dict[str, Statistic] = {}
    sections = []
    for modality in model.encoders:
        targets = targets_of(model).items()
        seeing = {name for name, target in targets if target != modality and modality not in model.blind[name]}
        known = {name: figure for name, figure in key_figures(intact).items() if name.partition("/")[0] in seeing}
        if not known:
            continue
        rows = [["intact", *(f"{figure.value:.4f}" for figure in known.values())]]
        for change in get_args(Change):
            if change == "without":
                (outcome,) = evaluator.evaluate(model.blindfold({modality}), split)
            else:
                (outcome,) = evaluator.evaluate(model, split, loader=Changed(evaluator, split, modality, change))
            found = key_figures(judge(model, outcome))
            cells = []
            for name, before in known.items():
                after = found[name]
                output, _, figure = name.partition("/")
                statistics[f"{output}/{change}_{modality}/{figure}"] = after
                cells.append(_beside(after, before))
            rows.append([change, *cells])
        sections.append(Section(f"Without {modality}", ABOUT, [Table([modality, *known], rows)]))
    return Findings(statistics, {}, sections)


ABOUT = (
    "In brackets the change and its 95% interval, by bootstrap over examples or clusters of them. If nothing changes "
    "where a modality is swapped for another example's, it is not used."
)


def _beside(after: Statistic, before: Statistic) -> str:
    change = compare(after, before)
    return f"{after.value:.4f} ({change.value:+.4f}, {change.low:+.4f} to {change.high:+.4f})"


class Changed(Loader):
    """Batches of a whole split in which one modality is noised or swapped; the same on any number of devices."""

    def __init__(self, evaluator: Evaluator, split: str, modality: str, change: Change):
        size = evaluator.batch_size
        super().__init__(evaluator.data, evaluator.data_dir, split, size, rows=rows_of(evaluator.sharding, size))
        self._modality, self._change = modality, change

    def _read(self, batch: Batch, place: int, index: int, position: int) -> Iterator[tuple[str, str]]:
        yield from super()._read(batch, place, index, position)
        name = self._modality
        if self._change == "swapped":
            self._swap(batch, place, (index + len(self.records) // 2) % len(self.records))
        elif batch.present[name][place]:
            values = batch.values[name][place]
            mask = batch.mask[name][place] if name in batch.mask else np.ones(values.shape, bool)
            rng = np.random.default_rng((0, index))
            batch.values[name][place] = noised(values, mask, self.data.features[name], rng)

    def _swap(self, batch: Batch, place: int, other: int) -> None:
        """Gives a row what another example has; where that has none, neither has the row."""
        input, raw = self.data.inputs[self._modality], self.records[other]
        batch.present[self._modality][place] = False
        value = raw.get(input.field or self._modality)
        if value is not None:
            with contextlib.suppress(BadInput):
                put(batch, place, self._modality, *input.read(value, None))


def noised(values: np.ndarray, mask: np.ndarray, feature: Any, rng: np.random.Generator) -> np.ndarray:
    """One example's values with noise where the mask is true."""
    real = np.broadcast_to(mask.reshape(*mask.shape, *[1] * (values.ndim - mask.ndim)), values.shape)
    if isinstance(feature, Text):
        replaced = rng.random(values.shape) < 0.5
        return np.where(real & replaced, rng.integers(END + 1, feature.vocabulary, values.shape), values)
    deviation = values[real].std() if real.any() else 0.0
    return np.where(real, values + deviation * rng.standard_normal(values.shape), values).astype(values.dtype)
