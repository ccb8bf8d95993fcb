"""What features know of labels, those that the model was not trained on too: by probes, and by prompts without any."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chz
import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from mmjax.data.device_batches import DevicePrefetcher, rows_of, shapes
from mmjax.data.loader import Data, Loader, empty_batch, set_example
from mmjax.data.prompt import make_prompt
from mmjax.errors import UserError
from mmjax.evaluation import intermediates
from mmjax.evaluation.suite_result import SuiteResult
from mmjax.heads.contrast import ContrastHead
from mmjax.metrics.statistics import Statistic
from mmjax.metrics.transfer import few_shot, k_nearest, linear_probe
from mmjax.model import Multimodal
from mmjax.reports.page import Section, Table
from mmjax.sharding.rules import Rules
from mmjax.types import Batch, Label, Text

SHOTS = (1, 5, 10)
TOP = 5


def probe(
    model: Multimodal,
    data: Data,
    data_dir: str,
    split: str,
    batch_size: int,
    *,
    sharding: NamedSharding,
    rules: Rules,
    at: Sequence[str] = ("pooled",),
    labels: Sequence[str] | None = None,
    examples: int = 4096,
) -> SuiteResult:
    """How well labels are told from intermediates: "probe/INTERMEDIATE/LABEL/FIGURE".

    linear_accuracy      by a linear probe
    nearest_accuracy     by the nearest neighbours
    few_shot_K_accuracy  from K examples of each class, K = 1, 5, 10, on average over draws of these; its interval is
                         about the examples asked, whatever is drawn

    See `mmjax.metrics.transfer` for these and `mmjax.evaluation.intermediates` for the names in `at`. They learn
    from `examples` evenly spread examples of the train split, unaugmented, at most, and are asked about all of `split`.
    `labels` are the names of features, by default of all labels of `data`, which is bound. Each of a label's slots is
    a task of its own, whose answers count together; a slot, or a label, that one of the splits has no example of is
    left out. An example without the modality that an intermediate is of counts, too: its vector is zero.

    Raises:
        UserError: for an intermediate or a label that there is not; where no label is left; where features are not
            finite.
    """
    able = [name for name, feature in data.features.items() if isinstance(feature, Label)]
    labels = able if labels is None else labels
    for name in labels:
        if name not in able:
            raise UserError(f"there is no label {name} to probe; there are {', '.join(able) or 'none'}")
    # What neither the model nor a probe reads need not be read from the disk.
    needed = {name: input for name, input in data.inputs.items() if name in model.encoders or name in labels}
    data = chz.replace(data, inputs=needed, workers=0)
    there = intermediates.names(model, shapes(data.features, batch_size, sharding), rules=rules)
    unknown = [name for name in at if name not in there]
    if unknown or not at:
        told = f"intermediate {unknown[0]}" if unknown else "probe of no intermediate"
        raise UserError(f"there is no {told}; the model has {', '.join(there)}")
    step = jax.jit(functools.partial(_look, at=tuple(at), labels=tuple(labels), rules=rules))
    load = functools.partial(Loader, data, data_dir, batch_size=batch_size, rows=rows_of(sharding, batch_size))
    (train, learned), (test, asked) = (
        _collect(functools.partial(step, model), loader, sharding)
        for loader in (load(split="train", examples=examples), load(split=split))
    )

    statistics: dict[str, Statistic] = {}
    table: dict[str, dict[str, str]] = {name: {} for name in at}
    for label in labels:
        feature = data.features[label]
        assert isinstance(feature, Label)
        for name in at:
            found = _read_off(train[name], learned[label], test[name], asked[label], len(feature.names))
            for figure, statistic in found.items():
                statistics[f"probe/{name}/{label}/{figure}"] = statistic
                table[name][f"{label} {figure.removesuffix('_accuracy').replace('_', ' ')}"] = f"{statistic.value:.4f}"
    if not statistics:
        raise UserError(f"{split} and train have no example with {', '.join(labels) or 'a label'} to probe")
    rows = [[name, *cells.values()] for name, cells in table.items()]
    return SuiteResult(statistics, {}, [Section(TITLE, ABOUT, [Table(["intermediate", *table[at[0]]], rows)])])


TITLE = "What features know"
ABOUT = (
    "Accuracies of what is learned of a label from frozen features of training examples: a linear probe, the nearest "
    "neighbours, and the nearest mean of 1, 5 and 10 examples of each class, on average over several draws of these. "
    "Intervals are about the examples asked, not about what was learned from."
)

# Classes by slot, and which slots have one.
Answers = tuple[Int[np.ndarray, "_ S"], Bool[np.ndarray, "_ S"]]


def _look(
    model: Multimodal, batch: Batch, *, at: tuple[str, ...], labels: tuple[str, ...], rules: Rules
) -> tuple[dict[str, Array], dict[str, tuple[Array, Array]]]:
    """Intermediates and labels of a batch, whole on every device."""
    found = intermediates.intermediates(model, batch, rules=rules)
    return {name: found[name] for name in at}, rules.gather({name: _answers(batch, name) for name in labels})


def _answers(batch: Batch, label: str) -> tuple[Int[Array, "B S"], Bool[Array, "B S"]]:
    return batch.values[label], batch.mask[label] & batch.present[label][:, None]


def _collect(step: Callable[[Batch], Any], loader: Loader, sharding: NamedSharding) -> Any:
    """What a step makes of every example of a loader, none of padding, on the host."""
    parts = []
    with DevicePrefetcher(loader, sharding, 0, loader.steps) as feed:
        for placed in feed:
            real = np.array([bool(name) for name in placed.host.ids])
            parts.append(_some(jax.device_get(step(placed.batch)), real))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _some(tree: Any, rows: Bool[np.ndarray, "B"]) -> Any:
    return jax.tree.map(lambda array: array[rows], tree)


def _read_off(
    train: Float[np.ndarray, "N D"], learned: Answers, test: Float[np.ndarray, "E D"], asked: Answers, kinds: int
) -> dict[str, Statistic]:
    """The figures of one intermediate and one label; none where no slot is real in both splits."""
    for features in (train, test):
        if not np.isfinite(features).all():
            raise UserError("features to probe are not finite: the model that they are from diverged")
    totals: dict[str, np.ndarray] = {}
    counts = np.zeros(len(test))
    for slot in range(learned[0].shape[1]):
        seen, real = (each[1][:, slot] for each in (learned, asked))
        if not seen.any() or not real.any():
            continue
        truth = asked[0][real, slot]
        given = train[seen], learned[0][seen, slot], test[real]
        right = {
            "linear_accuracy": linear_probe(*given, kinds).argmax(1) == truth,
            "nearest_accuracy": k_nearest(*given, kinds).argmax(1) == truth,
        } | {f"few_shot_{shots}_accuracy": few_shot(*given, truth, shots) for shots in SHOTS}
        for name, share in right.items():
            totals.setdefault(name, np.zeros(len(test)))[real] += share
        counts[real] += 1
    return {name: Statistic.ratio(total, counts) for name, total in totals.items()}


def zero_shot(
    model: Multimodal,
    data: Data,
    data_dir: str,
    split: str,
    batch_size: int,
    *,
    output: str,
    label: str,
    templates: Sequence[str],
    sharding: NamedSharding,
    rules: Rules,
) -> SuiteResult:
    """Classes told by which of their descriptions an example is most similar to: "OUTPUT/zero_shot/LABEL/FIGURE".

    accuracy        how often it is the true class's
    top_5_accuracy  how often that is among the five most similar, of more than five classes

    A class is described by `templates` such as "a picture of a {}" with its name for {}. The model's `output`, a
    Contrast of texts with another modality, embeds them; a class is the mean of its descriptions' embeddings, of length
    1 again (Radford et al. 2021, section 3.1.4). Examples count that have the other modality and exactly one answer: a
    scene of several things is not one of any class. What is as similar as the true class counts as more similar.

    Raises:
        UserError: where there is no such output, label or template, or where the model cannot read a description.
    """
    texts = {name for name, feature in data.features.items() if isinstance(feature, Text)}
    able = {
        name: head.names
        for name, head in model.outputs.items()
        if isinstance(head, ContrastHead) and texts.intersection(head.names)
    }
    if output not in able:
        raise UserError(
            f"{output} is no Contrast output that compares texts with something; there are {', '.join(able) or 'none'}"
        )
    feature = data.features.get(label)
    if not isinstance(feature, Label):
        raise UserError(f"there is no label {label} with classes to be told")
    if not templates or not all("{}" in template for template in templates):
        given = "; ".join(templates) or "none"
        raise UserError(
            f"templates need {{}} in the place of the class's name, as in 'a picture of a {{}}', not {given}"
        )

    side = 0 if able[output][0] in texts else 1
    needed = {name: input for name, input in data.inputs.items() if name in model.encoders or name == label}
    data = chz.replace(data, inputs=needed, workers=0)
    embed_text, embed = (
        functools.partial(
            jax.jit(functools.partial(_embed, output=output, side=which, label=label, rules=rules)), model
        )
        for which in (side, 1 - side)
    )
    prompts = [template.replace("{}", name) for name in feature.names for template in templates]
    batches = _batches(data, able[output][side], prompts, batch_size, sharding)
    said = np.concatenate([jax.device_get(embed_text(batch))[0] for batch in batches])[: len(prompts)]
    described = said.reshape(len(feature.names), len(templates), -1).mean(1)
    described /= np.maximum(np.linalg.norm(described, axis=1, keepdims=True), 1e-12)

    loader = Loader(data, data_dir, split, batch_size, rows=rows_of(sharding, batch_size))
    embedded, there, (classes, real) = _collect(embed, loader, sharding)
    counted = there & (real.sum(1) == 1)
    truth = classes[np.arange(len(classes)), real.argmax(1)]
    similarity = embedded @ described.T
    # Also where nothing can be compared, because the model has diverged, the rank is the last.
    less = similarity < np.take_along_axis(similarity, truth[:, None], 1)
    ranks = len(feature.names) - less.sum(1)
    statistics = {f"{output}/zero_shot/{label}/accuracy": Statistic.ratio(counted & (ranks <= 1), counted)}
    if len(feature.names) > TOP:
        statistics[f"{output}/zero_shot/{label}/top_{TOP}_accuracy"] = Statistic.ratio(
            counted & (ranks <= TOP), counted
        )
    rows = []
    for place, name in enumerate(feature.names):
        own = counted & (truth == place)
        found = f"{(ranks[own] <= 1).mean():.3f}" if own.any() else ""
        rows.append([name, f"{own.sum():,}", found])
    other = able[output][1 - side]
    about = (
        f"Each {other} is of the class whose descriptions {output} finds most similar: {'; '.join(templates)}. Asked "
        f"about the {counted.sum():,} of {len(counted):,} examples that have exactly one {label}."
    )
    section = Section(f"{label} by description", about, [Table(["class", "examples", "found"], rows)])
    return SuiteResult(statistics, {}, [section])


def _embed(
    model: Multimodal, batch: Batch, *, output: str, side: int, label: str, rules: Rules
) -> tuple[Float[Array, "B E"], Bool[Array, "B"], tuple[Int[Array, "B S"], Bool[Array, "B S"]]]:
    """One side's embeddings, which examples have one, and the labels; whole on every device."""
    streams, _ = model.encode(batch, None)
    head = model.outputs[output]
    assert isinstance(head, ContrastHead)
    name = head.names[side]
    return rules.gather((head.embed(side, streams[name]), batch.present[name], _answers(batch, label)))


def _batches(data: Data, name: str, texts: Sequence[str], batch_size: int, sharding: NamedSharding) -> list[Batch]:
    """Texts as batches of examples that have nothing else, on the devices; the last is filled up with absent ones."""
    batches = []
    for begin in range(0, len(texts), batch_size):
        batch = empty_batch(data.features, batch_size)
        for place, text in enumerate(texts[begin : begin + batch_size]):
            prompt = make_prompt(data.inputs, {name: text})
            set_example(batch, place, name, prompt.values[name][0], prompt.mask[name][0])
        batches.append(
            jax.tree.map(lambda array: jax.make_array_from_callback(array.shape, sharding, array.__getitem__), batch)
        )
    return batches
