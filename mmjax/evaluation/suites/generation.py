"""The suite `generation`: quality of generated images and audio, by judge models and by distances."""

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import chz
import jax
import numpy as np
from jaxtyping import Array, Bool, Int, UInt8

from mmjax.data.inputs import Input
from mmjax.data.sources.base import Recording
from mmjax.errors import UserError
from mmjax.evaluation.context import EvalContext
from mmjax.evaluation.judge_model import Judgement, JudgeModel
from mmjax.evaluation.results import metrics_of
from mmjax.evaluation.run import EvalCheckpoint
from mmjax.evaluation.suite_result import Metric, SuiteResult
from mmjax.evaluation.suites.base import Suite, at_least_one
from mmjax.layers.output import Output
from mmjax.metrics.audio import log_mel_frames, log_spectral_distance, mel_cepstral_distortion
from mmjax.metrics.distributions import distribution_metrics
from mmjax.metrics.image import psnr, ssim
from mmjax.metrics.statistics import Statistic
from mmjax.metrics.text import text_statistics
from mmjax.model import Multimodal
from mmjax.reports.gallery import show_raw, write_gallery
from mmjax.sharding.rules import Rules
from mmjax.types import Batch, Feature

TRUE, GENERATED, RECONSTRUCTION, GRIFFIN_LIM = "true", "generated", "reconstruction", "griffin_lim"
SHOWN = 16  # examples of every kind

Raw = UInt8[np.ndarray, "H W C"] | Recording


@chz.chz
class Generation(Suite):
    """Metrics of generated images and audio, by judge models and against the true ones.

    As far as they can be computed, those of an output are

        fid, kid, ..., classifier_agreement/...     of what it generates from the rest of an example: see `judge`
        true/classifier_agreement/...               of the true ones, which bounds what can be expected
        reconstruction/psnr, ssim, fid   of images that are encoded and decoded
        mel_cepstral_distortion          of speech, from what the true frames sound like by the same way, dB
        reconstruction/mel_cepstral_distortion, log_spectral_distance, and the same of griffin_lim/
                                         of waveforms generated from their spectrograms, from the recordings, dB

    What is generated is read by a judge model as a file of it would be.
    """

    readers: Mapping[str, str] = chz.field(
        default_factory=dict, doc="finished runs that classify or transcribe what is generated, by its modality"
    )
    examples: int | None = chz.field(
        default=None, validator=at_least_one, doc="evenly spread examples of the split; None: all"
    )

    @property
    def missing(self) -> str:
        return "this run generates no images and no audio"

    def check(self, context: EvalContext) -> None:
        self._check_readers(context, media_outputs(context.features, context.outputs))
        for target, run_dir in self.readers.items():
            context.judge_model(run_dir, target)

    def _check_readers(self, context: EvalContext, outputs: Mapping[str, Output]) -> None:
        """Raises UserError for a reader of what is not generated from the visible modalities."""
        targets = [str(output.generated_feature) for output in outputs.values()]
        for target in self.readers:
            if target not in targets:
                able = f"{', '.join(targets) or 'no images and no audio'} from {', '.join(context.visible)}"
                raise UserError(f"suites.generation.readers.{target} has nothing to read: the run generates {able}")

    def is_key(self, metric: str) -> bool:
        return metric.count("/") == 1 or metric.endswith(("/psnr", "/ssim", "/fid", "/mel_cepstral_distortion"))

    def run(self, context: EvalContext, checkpoint: EvalCheckpoint) -> SuiteResult | None:
        outputs = media_outputs(context.features, {name: context.outputs[name] for name in checkpoint.model.outputs})
        self._check_readers(context, outputs)
        if not outputs:
            return None
        unread = sorted(
            {output.target_feature for output in outputs.values() if output.target_feature} - {*self.readers}
        )
        if unread:
            keys = ", ".join(f"suites.generation.readers.{target}" for target in unread)
            context.say(f"generated {' and '.join(unread)} will not be judged: name runs that read it by {keys}")
        return _evaluate(context, checkpoint, outputs, self)


def media_outputs(features: Mapping[str, Feature], outputs: Mapping[str, Output]) -> dict[str, Output]:
    """Those of the outputs, configurations by name, that generate or reconstruct images or audio."""
    return {
        name: output
        for name, output in outputs.items()
        if (target := output.generated_feature) in features and features[str(target)].is_media
    }


class Targets(NamedTuple):
    """The classes that E examples were generated from, in S slots each, and which slots are real."""

    classes: Int[np.ndarray, "E S"]
    mask: Bool[np.ndarray, "E S"]


def judge(
    generated: Judgement, real: Judgement, targets: Mapping[str, Targets | Sequence[str]]
) -> tuple[dict[str, float], dict[str, Statistic]]:
    """`distribution_metrics` and `classifier_agreement`, by a model's judgements of generated and real.

    Raises:
        UserError: for too few examples, or generated ones that are not finite.
        ValueError: where the judgements are those of different models.
    """
    if generated.judge != real.judge:
        raise ValueError(f"judgements of {generated.judge} and {real.judge} cannot be compared")
    return distribution_metrics(real.features, generated.features), classifier_agreement(generated, targets)


def classifier_agreement(judgement: Judgement, targets: Mapping[str, Targets | Sequence[str]]) -> dict[str, Statistic]:
    """Whether generated examples show their targets: "classifier_agreement/OUTPUT/METRIC".

    Of classes, `accuracy` is the share of the slots with a target in which the judge predicts the target's class, and
    `exact` that of the examples in which it does so in all; of texts, see `text_statistics`. Outputs without a target
    have no metrics. The judge's agreement on the real examples bounds what can be expected.

    Raises:
        UserError: where there is a target that the judge does not predict.
    """
    classes = judgement.classes
    metrics: dict[str, Statistic] = {}
    for output, wanted in targets.items():
        if output not in classes and output not in judgement.texts:
            able = ", ".join([*classes, *judgement.texts])
            raise UserError(f"{judgement.judge} predicts no {output}: it predicts {able}")
        if not isinstance(wanted, Targets):
            found = text_statistics(judgement.texts[output], wanted) if wanted else {}
        elif wanted.mask.any():
            right = (classes[output] == wanted.classes) & wanted.mask
            counts = wanted.mask.sum(1)
            exact = (counts > 0) & (right.sum(1) == counts)
            found = {"accuracy": Statistic.ratio(right.sum(1), counts), "exact": Statistic.ratio(exact, counts > 0)}
        else:
            found = {}
        metrics |= {f"classifier_agreement/{output}/{name}": value for name, value in found.items()}
    return metrics


def _evaluate(
    context: EvalContext, checkpoint: EvalCheckpoint, outputs: Mapping[str, Output], options: Generation
) -> SuiteResult:
    """See `Generation`. Raises UserError where there are too few examples, or the model has diverged."""
    readers = {target: context.judge_model(run_dir, target) for target, run_dir in options.readers.items()}
    inputs = context.data.inputs
    wider = chz.replace(context.data, inputs={**inputs, **_reader_inputs(readers)})
    wider.check_fields(context.data_dir)
    context = dataclasses.replace(context, data=wider)
    loader = context.loader(examples=options.examples)
    step = jax.jit(functools.partial(_generate, outputs=tuple(outputs), rules=context.rules))
    kinds = (TRUE, GENERATED, RECONSTRUCTION, GRIFFIN_LIM)
    raws: dict[str, dict[str, list[Raw]]] = {name: {kind: [] for kind in kinds} for name in outputs}
    parts: list[Batch] = []
    with context.prefetch(loader) as feed:
        for number, placed in enumerate(feed):
            key = jax.random.fold_in(jax.random.key(context.seed), number)
            generated, again, batch = jax.device_get(step(checkpoint.model, placed.batch, key))
            if not all(np.isfinite(array).all() for array in jax.tree.leaves((generated, again))):
                raise UserError(
                    "the model's outputs are NaN or infinite, so training has diverged: give the step of an earlier "
                    "checkpoint"
                )
            parts.append(batch)
            for name, output in outputs.items():
                for kind, (feature, arrays) in _kinds(output, batch, generated[name], again.get(name)).items():
                    rows = ({part: array[row] for part, array in arrays.items()} for row in _rows(batch, output))
                    raws[name][kind].extend(inputs[feature].to_raw(row) for row in rows)
    whole = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    statistics: dict[str, Statistic] = {}
    figures: dict[str, Metric] = {}
    for name, output in outputs.items():
        target = str(output.generated_feature)
        found = _distances(inputs[target], raws[name])
        if target in readers:
            having = jax.tree.map(operator.itemgetter(_rows(whole, output)), whole)
            agreement, distributions = _judge(readers[target], target, raws[name], having)
            found |= agreement
            count = len(raws[name][TRUE])
            figures |= {f"{name}/{metric}": Metric(value, None, None, count) for metric, value in distributions.items()}
        there = whole.present[target][: loader.examples]
        statistics |= {f"{name}/{metric}": statistic.expand(there) for metric, statistic in found.items()}
    names = {target: reader.name for target, reader in readers.items()}
    result = SuiteResult(statistics, figures, (), names)
    _write_gallery(checkpoint, raws, result)
    return result


def _write_gallery(
    checkpoint: EvalCheckpoint, raws: Mapping[str, Mapping[str, Sequence[Raw]]], result: SuiteResult
) -> None:
    """Writes the first examples of every kind into the checkpoint's folder, with a page."""
    pieces = {
        f"{name}-{kind}": [show_raw(raw) for raw in some[:SHOWN]]
        for name, kinds in raws.items()
        for kind, some in kinds.items()
        if some
    }
    if pieces:
        facts: dict[str, Any] = {f"reader of {target}": reader for target, reader in result.readers.items()}
        facts |= {name: metric.value for name, metric in metrics_of(result).items()}
        write_gallery(checkpoint.folder, checkpoint.title, facts, {}, pieces)


def _reader_inputs(readers: Mapping[str, JudgeModel]) -> dict[str, Input]:
    """What readers read of the true examples, and the targets of their predictions, as inputs."""
    inputs = {_input_name(target): reader.input for target, reader in readers.items()}
    for target, reader in readers.items():
        inputs |= {_target_name(target, name): input for name, input in reader.truth.items()}
    return inputs


def _input_name(target: str) -> str:
    return f"{target} as its reader reads it"


def _target_name(target: str, output: str) -> str:
    return f"{output} of {target}"


def _generate(
    model: Multimodal, batch: Batch, key: jax.Array, *, outputs: tuple[str, ...], rules: Rules
) -> tuple[dict[str, dict[str, Array]], dict[str, Array], Batch]:
    """By output, what is generated and reconstructed; and the batch; whole on every device."""
    generated = {name: predicted for name, predicted in model.predict(batch, key).items() if name in outputs}
    views, _ = model.fused_views(batch, None)
    again = {
        name: output.reconstruct(views[model.hidden_modalities[name]], batch)
        for name, output in model.outputs.items()
        if name in outputs and output.reconstructs
    }
    return rules.gather((generated, again, batch))


def _rows(batch: Batch, output: Output) -> Int[np.ndarray, "N"]:
    """The examples that have what the output generates."""
    return np.flatnonzero(batch.present[str(output.generated_feature)])


def _kinds(
    output: Output, batch: Batch, generated: dict[str, np.ndarray], again: np.ndarray | None
) -> dict[str, tuple[str, dict[str, np.ndarray]]]:
    """What a batch has of an output by kind: of which feature, and as `Input.to_raw` takes it."""

    def arrays(name: str, values: np.ndarray) -> tuple[str, dict[str, np.ndarray]]:
        return name, {"values": values} | ({"mask": batch.mask[name]} if name in batch.mask else {})

    target, spectrogram = str(output.generated_feature), output.spectrogram_feature
    kinds = {TRUE: arrays(target, batch.values[target])}
    if generated:
        kinds[GENERATED] = target, generated
    if again is not None:
        kinds[RECONSTRUCTION] = arrays(target, again)
    if spectrogram is not None:
        kinds[GRIFFIN_LIM] = arrays(spectrogram, batch.values[spectrogram])
    return kinds


def _distances(input: Input, raws: Mapping[str, list[Raw]]) -> dict[str, Statistic]:
    """How far what was generated is from what is true, example by example, on average."""
    metrics: dict[str, Statistic] = {}
    prefixes = {GENERATED: "", RECONSTRUCTION: f"{RECONSTRUCTION}/", GRIFFIN_LIM: f"{GRIFFIN_LIM}/"}
    for kind, prefix in prefixes.items():
        # Of an image that is generated from words, many are right.
        if raws[kind] and (kind != GENERATED or input.feature.drawn_as != "image"):
            each = [_distance(input, raw, true) for raw, true in zip(raws[kind], raws[TRUE], strict=True)]
            ones = np.ones(len(each))
            metrics |= {
                f"{prefix}{name}": Statistic.ratio(np.array([found[name] for found in each]), ones) for name in each[0]
            }
    return metrics


def _distance(input: Input, raw: Any, true: Any) -> dict[str, float]:
    """Of two images, or of two recordings; of waveforms at equal lengths and loudness."""
    if input.feature.drawn_as == "image":
        pair = [image[None].astype(np.float32) / 255 for image in (raw, true)]
        return {"psnr": float(psnr(*pair)[0]), "ssim": float(ssim(*pair)[0])}
    samples = [raw.samples, true.samples]
    metrics = {}
    if input.feature.is_waveform:
        length = len(true.samples)
        samples = [input.read(Recording(sound[:length], true.rate), None)[0][:length] for sound in samples]
        metrics["log_spectral_distance"] = log_spectral_distance(*samples, rate=true.rate)
    metrics["mel_cepstral_distortion"] = mel_cepstral_distortion(
        *(log_mel_frames(sound, raw.rate) for sound in samples)
    )
    return metrics


def _judge(
    reader: JudgeModel, target: str, raws: Mapping[str, list[Raw]], batch: Batch
) -> tuple[dict[str, Statistic], dict[str, float]]:
    """A judge model's metrics of generated and true examples: per example, and of distributions."""
    targets: dict[str, Targets | Sequence[str]] = {}
    for name, input in reader.truth.items():
        key = _target_name(target, name)
        if input.feature.is_text:
            targets[name] = [input.to_raw({"ids": ids}) for ids in batch.values[key]]
        else:
            targets[name] = Targets(batch.values[key], batch.mask[key] & batch.present[key][:, None])
    key = _input_name(target)
    real = reader.read(batch.values[key], batch.mask.get(key))
    statistics = {f"{TRUE}/{name}": value for name, value in classifier_agreement(real, targets).items()}
    distributions: dict[str, float] = {}
    for kind, prefix in ((GENERATED, ""), (RECONSTRUCTION, f"{RECONSTRUCTION}/")):
        if raws[kind]:
            read = [reader.input.read(raw, None) for raw in raws[kind]]
            values = np.stack([values for values, _ in read])
            masks = [mask for _, mask in read if mask is not None]
            found = judge(reader.read(values, np.stack(masks) if masks else None), real, targets)
            distributions |= {f"{prefix}{name}": value for name, value in found[0].items()}
            statistics |= {f"{prefix}{name}": value for name, value in found[1].items()}
    return statistics, distributions
