"""The suite `attribution`: what predictions are based on, in metrics and drawn over the inputs."""

import dataclasses
import functools
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import chz
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mmjax.data.device_batches import DeviceBatch
from mmjax.data.loader import Data
from mmjax.evaluation.attribution import (
    AttributionMaps,
    Windows,
    answer,
    contributions,
    integrated_gradients,
    log_probability,
    occlusion,
    rank_correlation,
    windows,
)
from mmjax.evaluation.context import EvalContext
from mmjax.evaluation.maps import draw_map, draw_words, words_of
from mmjax.evaluation.rollout import rollout
from mmjax.evaluation.run import EvalCheckpoint
from mmjax.evaluation.suite_result import SuiteResult
from mmjax.evaluation.suites.base import Suite, at_least_one
from mmjax.metrics.statistics import Statistic
from mmjax.model import Multimodal
from mmjax.reports.gallery import draw_feature
from mmjax.reports.page import Card, Section, Table
from mmjax.reports.plots import picture_uri
from mmjax.sharding.rules import Rules
from mmjax.types import PADDING, Batch, Feature

SHOWN = 12
ABOUT = (
    "What speaks for the prediction is orange, what speaks against it blue. Integrated gradients add up to the "
    "difference between the prediction's log-probability and that of an example without content; occlusion is what is "
    "lost where a window or word is hidden; rollout is what attention lets through, for or against."
)


@chz.chz
class Attribution(Suite):
    """What predictions are based on: integrated gradients, occlusion, attention rollout, Shapley values.

    OUTPUT/attribution/share/MODALITY          the modality's share of the sum of all |integrated gradients|
    OUTPUT/attribution/completeness_error      by how much these miss the scores' changes, as a share of them
    OUTPUT/attribution/randomised_correlation  rank correlation of maps with those of a model with other parameters; a
                                               mean over examples and modalities
    OUTPUT/shapley/MODALITY                    of the prediction's log-probability, nats, a mean over examples

    Of several answers about one example, such as the shapes of its things, one is explained, chosen by the example's
    name; a text as a whole. Examples count that have the output's target. On a CPU an output takes minutes.
    """

    examples: int = chz.field(
        default=64, validator=at_least_one, doc="evenly spread examples of the split that are explained"
    )

    @property
    def missing(self) -> str:
        return "this run makes no predictions that can be explained"

    def is_key(self, metric: str) -> bool:
        return "/shapley/" in metric

    def run(self, context: EvalContext, checkpoint: EvalCheckpoint) -> SuiteResult | None:
        if not explainable(checkpoint.model):
            return None
        return explain(context, checkpoint, examples=self.examples)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Explained:
    """An output's predictions of E examples and their attributions, on the host.

    `predicted` and `truth` are ids Int[E P] at each place, `real` which of the truth's are, `explained` which are
    explained. The rest is by modality, see `mmjax.evaluation.attribution` and `rollout`: `batch` the inputs;
    `gradients` AttributionMaps, and `random` those of a model with other parameters; `occluded` and `rolled` maps;
    `shapley` Float[E].
    """

    batch: Any
    predicted: Any
    truth: Any
    real: Any
    explained: Any
    gradients: Any
    random: Any
    occluded: Any
    rolled: Any
    shapley: Any


def explainable(model: Multimodal) -> dict[str, str]:
    """The truth features of the outputs whose predictions can be explained."""
    return {
        name: output.truth_feature
        for name, output in model.outputs.items()
        if output.explainable and output.truth_feature is not None and model.is_defined(name)
    }


def explain(context: EvalContext, checkpoint: EvalCheckpoint, *, examples: int, shown: int = SHOWN) -> SuiteResult:
    """See `Attribution`; `shown` examples are drawn."""
    model, targets = checkpoint.model, explainable(checkpoint.model)
    context = context.with_inputs({*model.encoders, *targets.values()})
    with context.prefetch(context.loader(examples=examples)) as feed:
        batches = list(feed)
    ids = [name for placed in batches for name in placed.host.ids if name]
    random = jax.jit(checkpoint.build)(jax.random.key(context.seed))
    statistics: dict[str, Statistic] = {}
    sections = []
    for output, target in targets.items():
        seen = {name: context.features[name] for name in model.encoders if name not in model.hidden_modalities[output]}
        explained = _explain(context, checkpoint, random, output, target, batches, seen)
        found = attribution_metrics(explained)
        statistics |= {f"{output}/{name}": statistic for name, statistic in found.items()}
        rows = [
            [name, f"{found[f'attribution/share/{name}'].value:.3f}", f"{found[f'shapley/{name}'].value:+.3f}"]
            for name in seen
        ]
        chosen = np.flatnonzero(explained.explained.any(1))[:shown]
        cards = [_card(ids[row], _row(explained, row), context.data, target, seen) for row in chosen]
        table = Table(["modality", "share of integrated gradients", "Shapley value, nats"], rows)
        sections.append(Section(f"Attribution of {output}", ABOUT, [table], (), cards))
    return SuiteResult(statistics, {}, sections)


def _explain(
    context: EvalContext,
    checkpoint: EvalCheckpoint,
    random: Multimodal,
    output: str,
    target: str,
    batches: Sequence[DeviceBatch],
    seen: Mapping[str, Feature],
) -> Explained:
    """An output's predictions of all examples of the batches, then their attributions."""
    model, rules = checkpoint.model, context.rules
    look = jax.jit(functools.partial(_look, output=output, target=target, modalities=tuple(seen), rules=rules))
    gradients = jax.jit(functools.partial(_gradients, output=output, features=seen, rules=rules))
    others = jax.jit(functools.partial(_other_maps, output=output, features=seen, rules=rules))
    parts = []
    begin = time.monotonic()
    for number, placed in enumerate(batches):
        left = (time.monotonic() - begin) / max(1, number) * (len(batches) - number)
        progress = f"explaining {output}: batch {number + 1} of {len(batches)}"
        context.say(f"step {checkpoint.step}: {progress}" + (f", {left:.0f} s left" if number else ""))
        batch, predicted, truth, real = jax.device_get(look(model, placed.batch))
        if model.outputs[output].writes_text:
            explained = (predicted != PADDING) & real.any(1, keepdims=True)
        else:
            explained = choose_slots(placed.host.ids, real)
        words = {
            name: np.stack([words_of(context.data.inputs[name], ids)[1] for ids in batch.values[name]])
            for name, feature in seen.items()
            if feature.is_text
        }
        *question, places = context.to_devices((predicted, explained, words))
        found = (
            gradients(model, *question, placed.batch),
            gradients(random, *question, placed.batch),
            *others(model, *question, placed.batch, places),
        )
        whole = Explained(batch, predicted, truth, real, explained, *jax.device_get(found))
        parts.append(_row(whole, np.array([bool(name) for name in placed.host.ids])))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _row(explained: Any, rows: Any) -> Any:
    return jax.tree.map(lambda array: array[rows], explained)


def choose_slots(ids: Sequence[str], real: Bool[np.ndarray, "B S"]) -> Bool[np.ndarray, "B S"]:
    """One of every example's real slots, if it has any, by its name: the same in whatever batch it is."""
    chosen = np.zeros_like(real)
    for row, name in enumerate(ids):
        slots = np.flatnonzero(real[row])
        if len(slots):
            chosen[row, slots[zlib.crc32(name.encode()) % len(slots)]] = True
    return chosen


def _look(
    model: Multimodal, batch: Batch, *, output: str, target: str, modalities: tuple[str, ...], rules: Rules
) -> tuple[Batch, Int[Array, "B P"], Int[Array, "B P"], Bool[Array, "B P"]]:
    """An output's inputs, its predictions, and what is true; whole on every device."""
    real = batch.mask[target] & batch.present[target][:, None]
    parts = (batch.values, batch.mask, batch.present)
    values, mask, present = ({name: part[name] for name in modalities if name in part} for part in parts)
    return rules.gather((Batch(values, mask, present), answer(model, output, batch), batch.values[target], real))


def _gradients(
    model: Multimodal,
    predicted: Int[Array, "B P"],
    explained: Bool[Array, "B P"],
    batch: Batch,
    *,
    output: str,
    features: Mapping[str, Feature],
    rules: Rules,
) -> AttributionMaps:
    """Integrated gradients, whole on every device."""
    score = functools.partial(log_probability, model, output, predicted, explained)
    return rules.gather(integrated_gradients(score, batch, features))


def _other_maps(
    model: Multimodal,
    predicted: Int[Array, "B P"],
    explained: Bool[Array, "B P"],
    batch: Batch,
    words: Mapping[str, Int[Array, "B N"]],
    *,
    output: str,
    features: Mapping[str, Feature],
    rules: Rules,
) -> tuple[Any, Any, Any]:
    """Occlusion, rollout and Shapley values, whole on every device."""
    score = functools.partial(log_probability, model, output, predicted, explained)
    covers = {name: windows(feature) for name, feature in features.items()}
    covers |= {name: Windows(places, covers[name].count) for name, places in words.items()}
    occluded = occlusion(score, batch, features, covers)
    rolled = rollout(model, output, predicted, explained, batch)
    return rules.gather((occluded, rolled, contributions(score, batch, tuple(features))))


def attribution_metrics(explained: Explained) -> dict[str, Statistic]:
    """The metrics of one output; see `Attribution`."""
    there = explained.explained.any(1)
    amounts = {name: abs(flat(values)).sum(1) for name, values in explained.gradients.maps.items()}
    total = sum(amounts.values())
    found = {
        f"attribution/share/{name}": Statistic.ratio(np.where(there, amount, 0), np.where(there, total, 0))
        for name, amount in amounts.items()
    }
    gradients, random = explained.gradients, explained.random
    change = abs(gradients.score - gradients.baseline)
    found["attribution/completeness_error"] = Statistic.ratio(
        np.where(there, gradients.error, 0), np.where(there, change, 0)
    )
    alike = [rank_correlation(values, random.maps[name]) for name, values in gradients.maps.items()]
    known = np.isfinite(alike) & there
    found["attribution/randomised_correlation"] = Statistic.ratio(
        np.where(known, alike, 0).sum(0) / np.maximum(known.sum(0), 1), known.any(0)
    )
    return found | {
        f"shapley/{name}": Statistic.ratio(np.where(there, value, 0), there)
        for name, value in explained.shapley.items()
    }


def flat(values: Float[np.ndarray, "E ..."]) -> Float[np.ndarray, "E _"]:
    """Every example as one row."""
    return values.reshape(len(values), -1)


def _card(name: str, one: Explained, data: Data, target: str, seen: Mapping[str, Feature]) -> Card:
    """An example with its attributions, the prediction and what is true."""
    pictures: list[tuple[str, str]] = []
    words: list[tuple[str, list[tuple[str, float]]]] = []
    for modality, feature in seen.items():
        if not one.batch.present[modality]:
            continue
        values, input = one.batch.values[modality], data.inputs[modality]
        maps = {"integrated gradients": one.gradients.maps[modality], "occlusion": one.occluded[modality]}
        if one.rolled is not None:
            maps["rollout"] = feature.spread_tokens(one.rolled[modality])
        drawn = draw_feature(feature, values, one.batch.mask.get(modality))
        if drawn is not None:
            pictures.append((drawn, modality))
            real = one.batch.mask.get(modality, slice(None))
            grey, *upright = (feature.upright(each[real]) for each in (values, *maps.values()))
            grey = grey.mean(-1) if grey.ndim > 2 else grey
            for kind, map in zip(maps, upright, strict=True):
                drawn = picture_uri(draw_map(grey, map.sum(-1) if map.ndim > 2 else map))
                pictures.append((drawn, f"{modality}: {kind}"))
        elif feature.is_text:
            words += [
                (f"{modality}, {kind}", draw_words(input, values, map, shared=kind == "occlusion"))
                for kind, map in maps.items()
            ]
    place = "" if one.explained.sum() != 1 or len(one.explained) == 1 else f" {int(one.explained.argmax()) + 1}"
    shares = ", ".join(f"{modality} {float(value):+.3f}" for modality, value in one.shapley.items())
    predicted, truth = (_shown(data, target, ids, one.explained) for ids in (one.predicted, one.truth))
    lines = [
        f"predicted{place}: {predicted} (probability {np.exp(one.gradients.score):.3g})",
        f"true{place}: {truth}",
        f"log-probability {one.gradients.score:.3f} nats, {one.gradients.baseline:.3f} without content",
        f"Shapley values: {shares}",
    ]
    return Card(name, pictures, words, lines)


def _shown(data: Data, target: str, ids: Int[np.ndarray, "P"], explained: Bool[np.ndarray, "P"]) -> str:
    """A text, or the class in the slot explained."""
    classes = data.inputs[target].feature.classes
    return classes[int(ids[explained.argmax()])] if classes else data.inputs[target].to_raw({"ids": ids})
