"""The suite `attribution`: why outputs answered as they did, in figures and drawn over what they were given."""

import dataclasses
import functools
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chz
import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from mmjax.data.device_batches import DeviceBatch, DevicePrefetcher, rows_of
from mmjax.data.inputs import TextInput
from mmjax.data.loader import Data, Loader
from mmjax.evaluation.attribution import (
    EXPLAINED,
    Attribution,
    Windows,
    answer,
    contributions,
    integrated_gradients,
    log_probability,
    occlusion,
    rank_correlation,
    windows,
)
from mmjax.evaluation.maps import draw_map, draw_words, spread_tokens, words_of
from mmjax.evaluation.rollout import rollout
from mmjax.evaluation.suite_result import SuiteResult
from mmjax.generators.text import TextWriter
from mmjax.metrics.statistics import Statistic
from mmjax.model import Multimodal
from mmjax.reports.page import Card, Section, Table
from mmjax.reports.plots import picture_uri, spectrum_uri
from mmjax.sharding.rules import Rules
from mmjax.types import PADDING, Batch, Feature, Image, Label, Spectrogram, Text


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Explained:
    """An output's answers to E examples and why it gave them: everything on the host.

    `said` and `truth` are ids Int[E P] at each place, `real` which of the truth's are, `asked` which are explained. The
    rest is by modality, see `mmjax.evaluation.attribution` and `rollout`: `batch` what was given; `gradients` an
    Attribution, and `fresh` that of a model with other parameters; `occluded` and `rolled` maps; `shapley` Float[E].
    """

    batch: Any
    said: Any
    truth: Any
    real: Any
    asked: Any
    gradients: Any
    fresh: Any
    occluded: Any
    rolled: Any
    shapley: Any


def explainable(model: Multimodal) -> dict[str, str]:
    """What the outputs say whose answers can be explained: they choose classes or write texts, and see something."""
    return {
        name: head.target
        for name, head in model.outputs.items()
        if isinstance(head, EXPLAINED) and model.is_defined(name)
    }


def explain(
    model: Multimodal,
    data: Data,
    data_dir: str,
    split: str,
    batch_size: int,
    *,
    sharding: NamedSharding,
    rules: Rules,
    examples: int = 64,
    shown: int = 12,
    seed: int = 0,
    build: Callable[[jax.Array], Multimodal],
    say: Callable[[str], None] = lambda line: None,
) -> SuiteResult:
    """Why the outputs that can be explained answered as they did, about evenly spread examples of a split.

    OUTPUT/attribution/share/MODALITY          the modality's share of the sum of all |integrated gradients|
    OUTPUT/attribution/completeness_error      by how much these miss the scores' changes, as a share of them
    OUTPUT/attribution/randomised_correlation  rank correlation of maps with those of `build(key)`, a model with other
                                               parameters; a mean over examples and modalities
    OUTPUT/shapley/MODALITY                    of the answer's log-probability, nats, a mean over examples

    Of several answers about one example, such as the shapes of its things, one is explained, chosen by the example's
    name; a text as a whole. Examples count that have the output's target. `data` is bound. `shown` examples are drawn.
    `say` is told what is being explained: on a CPU an output takes minutes.
    """
    targets = explainable(model)
    needed = {name: input for name, input in data.inputs.items() if name in {*model.encoders, *targets.values()}}
    data = chz.replace(data, inputs=needed, workers=0)
    features, rows = data.features, rows_of(sharding, batch_size)
    loader = Loader(data, data_dir, split, batch_size, rows=rows, examples=examples)
    with DevicePrefetcher(loader, sharding, 0, loader.steps) as feed:
        batches = list(feed)
    ids = [name for placed in batches for name in placed.host.ids if name]
    fresh = jax.jit(build)(jax.random.key(seed))
    statistics: dict[str, Statistic] = {}
    sections = []
    for output, target in targets.items():
        seen = {name: features[name] for name in model.encoders if name not in model.hidden_modalities[output]}
        explained = _explain(model, fresh, output, target, data, batches, seen, sharding, rules, say)
        found = figures(explained)
        statistics |= {f"{output}/{name}": statistic for name, statistic in found.items()}
        several = [
            [name, f"{found[f'attribution/share/{name}'].value:.3f}", f"{found[f'shapley/{name}'].value:+.3f}"]
            for name in seen
        ]
        chosen = np.flatnonzero(explained.asked.any(1))[:shown]
        cards = [_card(ids[row], _row(explained, row), data, target, seen) for row in chosen]
        table = Table(["modality", "share of integrated gradients", "Shapley value, nats"], several)
        sections.append(Section(f"Why {output}", ABOUT, [table], (), cards))
    return SuiteResult(statistics, {}, sections)


ABOUT = (
    "What speaks for the answer is orange, what speaks against it blue. Integrated gradients add up to the difference "
    "between the answer's log-probability and that of an example with nothing on it; occlusion is what is lost where "
    "a window or word is taken away; rollout is what attention lets through, for or against."
)


def _explain(
    model: Multimodal,
    fresh: Multimodal,
    output: str,
    target: str,
    data: Data,
    batches: Sequence[DeviceBatch],
    seen: Mapping[str, Feature],
    sharding: NamedSharding,
    rules: Rules,
    say: Callable[[str], None],
) -> Explained:
    """An output's answers to all examples of the batches: first what it says, then, of what is asked for, why."""
    look = jax.jit(functools.partial(_look, output=output, target=target, modalities=tuple(seen), rules=rules))
    gradients = jax.jit(functools.partial(_gradients, output=output, features=seen, rules=rules))
    why = jax.jit(functools.partial(_why, output=output, features=seen, rules=rules))
    parts = []
    begin = time.monotonic()
    for number, placed in enumerate(batches):
        left = (time.monotonic() - begin) / max(1, number) * (len(batches) - number)
        say(f"explaining {output}: batch {number + 1} of {len(batches)}" + (f", {left:.0f} s left" if number else ""))
        batch, said, truth, real = jax.device_get(look(model, placed.batch))
        if isinstance(model.outputs[output], TextWriter):
            asked = (said != PADDING) & real.any(1, keepdims=True)
        else:
            asked = choose(placed.host.ids, real)
        words = {
            name: np.stack([words_of(input, ids)[1] for ids in batch.values[name]])
            for name, input in data.inputs.items()
            if name in seen and isinstance(input, TextInput)
        }
        *question, places = jax.tree.map(
            lambda array: jax.make_array_from_callback(array.shape, sharding, array.__getitem__), (said, asked, words)
        )
        found = (
            gradients(model, *question, placed.batch),
            gradients(fresh, *question, placed.batch),
            *why(model, *question, placed.batch, places),
        )
        whole = Explained(batch, said, truth, real, asked, *jax.device_get(found))
        parts.append(_row(whole, np.array([bool(name) for name in placed.host.ids])))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _row(explained: Any, rows: Any) -> Any:
    return jax.tree.map(lambda array: array[rows], explained)


def choose(ids: Sequence[str], real: Bool[np.ndarray, "B S"]) -> Bool[np.ndarray, "B S"]:
    """One of every example's real slots, if it has any, by its name: the same in whatever batch it is."""
    asked = np.zeros_like(real)
    for row, name in enumerate(ids):
        slots = np.flatnonzero(real[row])
        if len(slots):
            asked[row, slots[zlib.crc32(name.encode()) % len(slots)]] = True
    return asked


def _look(
    model: Multimodal, batch: Batch, *, output: str, target: str, modalities: tuple[str, ...], rules: Rules
) -> tuple[Batch, Int[Array, "B P"], Int[Array, "B P"], Bool[Array, "B P"]]:
    """What an output is given, what it says, and what is true; whole on every device."""
    real = batch.mask[target] & batch.present[target][:, None]
    parts = (batch.values, batch.mask, batch.present)
    values, mask, present = ({name: part[name] for name in modalities if name in part} for part in parts)
    return rules.gather((Batch(values, mask, present), answer(model, output, batch), batch.values[target], real))


def _gradients(
    model: Multimodal,
    said: Int[Array, "B P"],
    asked: Bool[Array, "B P"],
    batch: Batch,
    *,
    output: str,
    features: Mapping[str, Feature],
    rules: Rules,
) -> Attribution:
    """Integrated gradients, whole on every device."""
    score = functools.partial(log_probability, model, output, said, asked)
    return rules.gather(integrated_gradients(score, batch, features))


def _why(
    model: Multimodal,
    said: Int[Array, "B P"],
    asked: Bool[Array, "B P"],
    batch: Batch,
    words: Mapping[str, Int[Array, "B N"]],
    *,
    output: str,
    features: Mapping[str, Feature],
    rules: Rules,
) -> tuple[Any, Any, Any]:
    """What occlusion, rollout and contributions say, whole on every device."""
    score = functools.partial(log_probability, model, output, said, asked)
    covers = {name: windows(feature) for name, feature in features.items()}
    covers |= {name: Windows(places, covers[name].count) for name, places in words.items()}
    occluded = occlusion(score, batch, features, covers)
    rolled = rollout(model, output, said, asked, batch)
    return rules.gather((occluded, rolled, contributions(score, batch, tuple(features))))


def figures(explained: Explained) -> dict[str, Statistic]:
    """The figures of one output; see `explain`."""
    there = explained.asked.any(1)
    amounts = {name: abs(flat(values)).sum(1) for name, values in explained.gradients.maps.items()}
    total = sum(amounts.values())
    found = {
        f"attribution/share/{name}": Statistic.ratio(np.where(there, amount, 0), np.where(there, total, 0))
        for name, amount in amounts.items()
    }
    gradients, fresh = explained.gradients, explained.fresh
    change = abs(gradients.score - gradients.baseline)
    found["attribution/completeness_error"] = Statistic.ratio(
        np.where(there, gradients.error, 0), np.where(there, change, 0)
    )
    alike = [rank_correlation(values, fresh.maps[name]) for name, values in gradients.maps.items()]
    known = np.isfinite(alike) & there
    found["attribution/randomised_correlation"] = Statistic.ratio(
        np.where(known, alike, 0).sum(0) / np.maximum(known.sum(0), 1), known.any(0)
    )
    return found | {
        f"shapley/{name}": Statistic.ratio(np.where(there, value, 0), there)
        for name, value in explained.shapley.items()
    }


def flat(values: Float[np.ndarray, "E ..."]) -> Float[np.ndarray, "E _"]:
    """All that is of one example in one row."""
    return values.reshape(len(values), -1)


def _card(name: str, one: Explained, data: Data, target: str, seen: Mapping[str, Feature]) -> Card:
    """What an output was given, what it said and what is true, and what of the one made it say the other."""
    pictures: list[tuple[str, str]] = []
    words: list[tuple[str, list[tuple[str, float]]]] = []
    for modality, feature in seen.items():
        if not one.batch.present[modality]:
            continue
        values, input = one.batch.values[modality], data.inputs[modality]
        maps = {"integrated gradients": one.gradients.maps[modality], "occlusion": one.occluded[modality]}
        if one.rolled is not None:
            maps["rollout"] = spread_tokens(one.rolled[modality], feature)
        if isinstance(feature, Image):
            maps["integrated gradients"] = maps["integrated gradients"].sum(-1)
            pictures.append((picture_uri(values), modality))
            pictures += [
                (picture_uri(draw_map(values.mean(-1), map)), f"{modality}: {kind}") for kind, map in maps.items()
            ]
        elif isinstance(feature, Spectrogram):
            real = one.batch.mask[modality]
            pictures.append((spectrum_uri(values[real]), modality))
            pictures += [
                (picture_uri(draw_map(values[real].T[::-1], map[real].T[::-1])), f"{modality}: {kind}")
                for kind, map in maps.items()
            ]
        elif isinstance(feature, Text):
            assert isinstance(input, TextInput)
            words += [
                (f"{modality}, {kind}", draw_words(input, values, map, shared=kind == "occlusion"))
                for kind, map in maps.items()
            ]
    place = "" if one.asked.sum() != 1 or len(one.asked) == 1 else f" {int(one.asked.argmax()) + 1}"
    shares = ", ".join(f"{modality} {float(value):+.3f}" for modality, value in one.shapley.items())
    lines = [
        f"said{place}: {_told(data, target, one.said, one.asked)} (probability {np.exp(one.gradients.score):.3g})",
        f"true{place}: {_told(data, target, one.truth, one.asked)}",
        f"log-probability {one.gradients.score:.3f} nats, {one.gradients.baseline:.3f} with nothing there",
        f"Shapley values: {shares}",
    ]
    return Card(name, pictures, words, lines)


def _told(data: Data, target: str, ids: Int[np.ndarray, "P"], asked: Bool[np.ndarray, "P"]) -> str:
    """A text, or the class in the slot asked for."""
    input = data.inputs[target]
    if isinstance(input, TextInput):
        return input.decode(ids)
    assert isinstance(input.feature, Label)
    return input.feature.names[int(ids[asked.argmax()])]
