"""The suite `zero_shot`: classes recognised by their descriptions, without training on labels."""

import functools
from collections.abc import Sequence

import chz
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mmjax.data.batching.host_batch import empty_batch, set_example
from mmjax.data.prompt import make_prompt
from mmjax.errors import UserError
from mmjax.evaluation.context import EvalContext
from mmjax.evaluation.run import EvalCheckpoint
from mmjax.evaluation.suite_result import SuiteResult
from mmjax.evaluation.suites.base import Suite
from mmjax.evaluation.suites.probe import collect, label_names, label_truth
from mmjax.evaluation.suites.standard import class_table
from mmjax.metrics.statistics import Statistic
from mmjax.model import Multimodal
from mmjax.reports.page import Section
from mmjax.sharding.rules import Rules
from mmjax.types import Batch

TOP = 5


@chz.chz
class ZeroShot(Suite):
    """Accuracy of classes recognised by which of their descriptions an example is most similar to.

    As "OUTPUT/zero_shot/LABEL/METRIC", of outputs that align text with another modality:

    accuracy        how often it is the true class's
    top_5_accuracy  how often that is among the five most similar, of more than five classes

    A class is the mean of the embeddings of its descriptions, of length 1 again (Radford et al. 2021, section 3.1.4).
    Examples count that have the other modality and exactly one answer: a scene of several things is not one of any
    class. What is as similar as the true class counts as more similar.
    """

    labels: tuple[str, ...] | None = chz.field(default=None, doc="labels that are predicted; None: all of the data")
    templates: tuple[str, ...] = chz.field(
        default=("{}", "a {}", "a picture of a {}"), doc="descriptions of a class, with {} for its name"
    )

    @property
    def missing(self) -> str:
        return "this run aligns no texts with anything, or its data have no labels"

    def is_key(self, metric: str) -> bool:
        return metric.endswith("/accuracy")

    def run(self, context: EvalContext, checkpoint: EvalCheckpoint) -> SuiteResult | None:
        found = [
            zero_shot(context, checkpoint.model, output=output, label=label, templates=self.templates)
            for output in text_outputs(checkpoint.model)
            for label in self.labels or label_names(context)
        ]
        if not found:
            return None
        statistics = {name: statistic for each in found for name, statistic in each.statistics.items()}
        return SuiteResult(statistics, {}, [section for each in found for section in each.sections])


def text_outputs(model: Multimodal) -> list[str]:
    """The outputs that align a text with something."""
    return [name for name, output in model.outputs.items() if output.aligned_texts]


def zero_shot(
    context: EvalContext, model: Multimodal, *, output: str, label: str, templates: Sequence[str]
) -> SuiteResult:
    """The metrics of one label by one output: see `ZeroShot`.

    Raises:
        UserError: where there is no such output, label or template, or where the model cannot read a description.
    """
    able = text_outputs(model)
    if output not in able:
        raise UserError(f"{output} does not align texts with something; there are {', '.join(able) or 'none'}")
    feature = context.features.get(label)
    if feature is None or not feature.classes:
        raise UserError(f"there is no label {label} with classes to recognise")
    if not templates or not all("{}" in template for template in templates):
        given = "; ".join(templates) or "none"
        raise UserError(
            f"templates need {{}} in the place of the class's name, as in 'a picture of a {{}}', not {given}"
        )
    classes, modalities = feature.classes, model.outputs[output].aligned_modalities
    side = 0 if modalities[0] in model.outputs[output].aligned_texts else 1
    context = context.with_inputs({*model.encoders, label})
    embed_text, embed = (
        functools.partial(
            jax.jit(functools.partial(_embed, output=output, side=which, label=label, rules=context.rules)), model
        )
        for which in (side, 1 - side)
    )
    prompts = [template.replace("{}", name) for name in classes for template in templates]
    batches = _text_batches(context, modalities[side], prompts)
    embeddings = np.concatenate([jax.device_get(embed_text(batch))[0] for batch in batches])[: len(prompts)]
    described = embeddings.reshape(len(classes), len(templates), -1).mean(1)
    described /= np.maximum(np.linalg.norm(described, axis=1, keepdims=True), 1e-12)

    embedded, there, (answers, real) = collect(context, embed, context.loader())
    counted = there & (real.sum(1) == 1)
    truth = answers[np.arange(len(answers)), real.argmax(1)]
    similarity = embedded @ described.T
    # Also where nothing can be compared, because the model has diverged, the rank is the last.
    less = similarity < np.take_along_axis(similarity, truth[:, None], 1)
    ranks = len(classes) - less.sum(1)
    statistics = {f"{output}/zero_shot/{label}/accuracy": Statistic.ratio(counted & (ranks <= 1), counted)}
    if len(classes) > TOP:
        statistics[f"{output}/zero_shot/{label}/top_{TOP}_accuracy"] = Statistic.ratio(
            counted & (ranks <= TOP), counted
        )
    predicted = np.where(ranks <= 1, truth, np.where(np.eye(len(classes))[truth] > 0, -np.inf, similarity).argmax(1))
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (truth[counted], predicted[counted]), 1)
    about = (
        f"The predicted class is the one whose descriptions {output} finds most similar to the "
        f"{modalities[1 - side]}: {'; '.join(templates)}. Evaluated on the {counted.sum():,} of {len(counted):,} "
        f"examples that have exactly one {label}."
    )
    section = Section(f"{label} by description", about, [class_table(classes, confusion)])
    return SuiteResult(statistics, {}, [section])


def _embed(
    model: Multimodal, batch: Batch, *, output: str, side: int, label: str, rules: Rules
) -> tuple[Float[Array, "B E"], Bool[Array, "B"], tuple[Int[Array, "B S"], Bool[Array, "B S"]]]:
    """One side's embeddings, which examples have one, and the labels; whole on every device."""
    streams, _ = model.encode(batch, None)
    name = model.outputs[output].aligned_modalities[side]
    embeddings = model.outputs[output].embed_modality(side, streams[name])
    return rules.gather((embeddings, batch.present[name], label_truth(batch, label)))


def _text_batches(context: EvalContext, name: str, texts: Sequence[str]) -> list[Batch]:
    """Texts as batches of examples that have nothing else, on the devices; absent ones fill up the last."""
    batches = []
    for begin in range(0, len(texts), context.batch_size):
        batch = empty_batch(context.features, context.batch_size)
        for place, text in enumerate(texts[begin : begin + context.batch_size]):
            prompt = make_prompt(context.data.inputs, {name: text})
            set_example(batch, place, name, prompt.values[name][0], prompt.mask[name][0])
        batches.append(context.to_devices(batch))
    return batches
