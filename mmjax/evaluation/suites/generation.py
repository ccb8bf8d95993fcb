"""The suite generation: how good generated images and audio are, by judge models and against the true ones."""

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import chz
import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int, UInt8

from mmjax.data.device_batches import DevicePrefetcher, rows_of
from mmjax.data.inputs import Input, TextInput, WaveformInput
from mmjax.data.loader import Data, Loader
from mmjax.data.sources.base import Recording
from mmjax.errors import UserError
from mmjax.evaluation.judge_model import JudgeModel, Reading
from mmjax.evaluation.suite_result import Metric, SuiteResult
from mmjax.generators import Vocoder
from mmjax.metrics.audio import frames, log_spectral_distance, mel_cepstral_distortion
from mmjax.metrics.distributions import distribution_metrics
from mmjax.metrics.image import psnr, ssim
from mmjax.metrics.statistics import Statistic
from mmjax.metrics.text import text_statistics
from mmjax.model import Multimodal
from mmjax.reports.gallery import unread
from mmjax.sharding.rules import Rules
from mmjax.types import Batch, Feature, Fused, Image, Spectrogram, Waveform


class Asked(NamedTuple):
    """The classes that E examples were made to show, in S slots each, and which of the slots mean anything."""

    classes: Int[np.ndarray, "E S"]
    mask: Bool[np.ndarray, "E S"]


class Judged(NamedTuple):
    """Figures of distributions and of examples by name, and the reader whose features and answers they rest on."""

    reader: str
    distributions: dict[str, float]
    statistics: dict[str, Statistic]


def judge(made: Reading, real: Reading, asked: Mapping[str, Asked | Sequence[str]]) -> Judged:
    """What a reader's two readings say of what was made: see `distribution_metrics` and `classifier_agreement`.

    Raises:
        UserError: for too few examples, or made ones that are not finite.
        ValueError: where the readings are those of different readers.
    """
    if made.reader != real.reader:
        raise ValueError(f"what {made.reader} and {real.reader} read cannot be compared")
    return Judged(made.reader, distribution_metrics(real.features, made.features), classifier_agreement(made, asked))


def classifier_agreement(made: Reading, asked: Mapping[str, Asked | Sequence[str]]) -> dict[str, Statistic]:
    """Whether what was made shows what was asked for: "classifier_agreement/OUTPUT/METRIC" by output of the reader.

    Of classes, `accuracy` is the share of the slots asked for in which the reader finds the class asked for, and
    `exact` that of the examples in which it does so in all; of texts, see `text_statistics`. Nothing is said of
    outputs of which nothing was asked. What it reads of the real examples bounds what can be expected.

    Raises:
        UserError: where something was asked that the reader does not read.
    """
    answers = made.answers
    metrics: dict[str, Statistic] = {}
    for output, wanted in asked.items():
        if output not in answers and output not in made.texts:
            raise UserError(f"{made.reader} reads no {output}: it reads {', '.join([*answers, *made.texts])}")
        if not isinstance(wanted, Asked):
            found = text_statistics(made.texts[output], wanted) if wanted else {}
        elif wanted.mask.any():
            right = (answers[output] == wanted.classes) & wanted.mask
            counts = wanted.mask.sum(1)
            exact = (counts > 0) & (right.sum(1) == counts)
            found = {"accuracy": Statistic.ratio(right.sum(1), counts), "exact": Statistic.ratio(exact, counts > 0)}
        else:
            found = {}
        metrics |= {f"classifier_agreement/{output}/{name}": value for name, value in found.items()}
    return metrics


TRUE, MADE, AGAIN, GRIFFIN_LIM = "true", "made", "reconstruction", "griffin_lim"

Raw = UInt8[np.ndarray, "H W C"] | Recording


@runtime_checkable
class Reconstructs(Protocol):
    """A built output that makes its target anew from what the batch has of it."""

    def reconstruct(self, fused: Fused, batch: Batch) -> Float[Array, "B ..."]:
        """What becomes of the batch's own, in the feature's own terms."""
        ...


@dataclasses.dataclass(frozen=True)
class Generated:
    """What was found, the names of the readers that it rests on, and by output what was made, beside what is true."""

    findings: SuiteResult
    readers: dict[str, str]
    raws: dict[str, dict[str, list[Raw]]]


def makers(features: Mapping[str, Feature], outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the outputs, configurations by name, that make pictures or sounds, or code and decode them."""
    kinds = Image | Spectrogram | Waveform
    return {
        name: part for name, part in outputs.items() if isinstance(features.get(getattr(part, "target", "")), kinds)
    }


def evaluate_generation(
    model: Multimodal,
    outputs: Mapping[str, Any],
    data: Data,
    data_dir: str,
    split: str,
    batch_size: int,
    *,
    readers: Mapping[str, JudgeModel],
    sharding: NamedSharding,
    rules: Rules,
    examples: int | None = None,
    seed: int = 0,
) -> Generated:
    """What outputs make of pictures and sounds for `examples` evenly spread examples (all, by default) of a split.

    `outputs` are the configurations, by name, of those to be judged; `readers` are by the target that they judge. What
    is made is read as a file of it would be. As far as they can be had, the figures of an output are

        fid, kid, ..., classifier_agreement/...     of what it makes of the rest of an example: see `judge`
        true/classifier_agreement/...               of the true ones, which bounds what can be expected
        reconstruction/psnr, ssim, fid   of what becomes of pictures that are coded and decoded
        mel_cepstral_distortion          of speech, from what the true frames sound like by the same way, dB
        reconstruction/mel_cepstral_distortion, log_spectral_distance, and the same of griffin_lim/
                                         of waveforms made of their spectra, from the recordings, dB

    `seed` decides what is drawn. `data` is bound, and the mesh the current one. Raises UserError where a reader has
    nothing to read, or there are too few examples.
    """
    if not outputs:
        return Generated(SuiteResult(), {}, {})
    wider = chz.replace(data, inputs={**data.inputs, **_besides(readers)}, workers=0)
    wider.check_fields(data_dir)
    loader = Loader(wider, data_dir, split, batch_size, rows=rows_of(sharding, batch_size), examples=examples)
    step = jax.jit(functools.partial(_make, outputs=tuple(outputs), rules=rules))
    parts: list[Batch] = []
    raws: dict[str, dict[str, list[Raw]]] = {name: {TRUE: [], MADE: [], AGAIN: [], GRIFFIN_LIM: []} for name in outputs}
    with DevicePrefetcher(loader, sharding, 0, loader.steps) as feed:
        for number, placed in enumerate(feed):
            key = jax.random.fold_in(jax.random.key(seed), number)
            made, again, batch = jax.device_get(step(model, placed.batch, key))
            if not all(np.isfinite(array).all() for array in jax.tree.leaves((made, again))):
                raise UserError(
                    "what the model makes is not finite: it has diverged; give the step of a checkpoint before"
                )
            parts.append(batch)
            for name, output in outputs.items():
                for kind, (feature, said) in _kinds(output, batch, made[name], again.get(name)).items():
                    rows = ({part: array[row] for part, array in said.items()} for row in _rows(batch, output))
                    raws[name][kind].extend(unread(data.inputs[feature], row) for row in rows)
    whole = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    statistics: dict[str, Statistic] = {}
    figures: dict[str, Metric] = {}
    for name, output in outputs.items():
        found = _compare(data.inputs[output.target], raws[name])
        if output.target in readers:
            having = jax.tree.map(operator.itemgetter(_rows(whole, output)), whole)
            read, distributions = _judge(readers[output.target], output.target, raws[name], having)
            found |= read
            count = len(raws[name][TRUE])
            figures |= {f"{name}/{figure}": Metric(value, None, None, count) for figure, value in distributions.items()}
        there = whole.present[output.target][: loader.examples]
        statistics |= {f"{name}/{figure}": statistic.spread(there) for figure, statistic in found.items()}
    names = {target: reader.name for target, reader in readers.items()}
    return Generated(SuiteResult(statistics, figures), names, raws)


def _besides(readers: Mapping[str, JudgeModel]) -> dict[str, Input]:
    """What readers read of the true examples, and what is asked of the made ones, as inputs."""
    read = {_read(target): reader.input for target, reader in readers.items()}
    asked = {_asked(target, name): input for target, reader in readers.items() for name, input in reader.asked.items()}
    return read | asked


def _read(target: str) -> str:
    return f"{target} as its reader reads it"


def _asked(target: str, output: str) -> str:
    return f"{output} asked of {target}"


def _make(
    model: Multimodal, batch: Batch, key: jax.Array, *, outputs: tuple[str, ...], rules: Rules
) -> tuple[dict[str, dict[str, Array]], dict[str, Array], Batch]:
    """By output, what is made and what becomes of the batch's own; and the batch; whole on every device."""
    made = {name: said for name, said in model.predict(batch, key).items() if name in outputs}
    views, _ = model.views(batch, None)
    again = {
        name: output.reconstruct(views[model.hidden_modalities[name]], batch)
        for name, output in model.outputs.items()
        if name in outputs and isinstance(output, Reconstructs)
    }
    return rules.gather((made, again, batch))


def _rows(batch: Batch, output: Any) -> np.ndarray:
    """The examples that have what the output makes."""
    return np.flatnonzero(batch.present[output.target])


def _kinds(
    output: Any, batch: Batch, made: dict[str, np.ndarray], again: np.ndarray | None
) -> dict[str, tuple[str, dict[str, np.ndarray]]]:
    """What there is of a batch for an output: of which feature, and as `unread` takes it."""

    def own(name: str, values: np.ndarray) -> tuple[str, dict[str, np.ndarray]]:
        return name, {"values": values} | ({"mask": batch.mask[name]} if name in batch.mask else {})

    kinds = {TRUE: own(output.target, batch.values[output.target])}
    if made:
        kinds[MADE] = output.target, made
    if again is not None:
        kinds[AGAIN] = own(output.target, again)
    if isinstance(output, Vocoder):
        kinds[GRIFFIN_LIM] = own(output.mel, batch.values[output.mel])
    return kinds


def _compare(input: Input, raws: Mapping[str, list[Raw]]) -> dict[str, Statistic]:
    """How far what was made is from what is true, example by example, on average."""
    figures: dict[str, Statistic] = {}
    for kind, prefix in ((MADE, ""), (AGAIN, f"{AGAIN}/"), (GRIFFIN_LIM, f"{GRIFFIN_LIM}/")):
        # A picture that was made of words has many right ones.
        if raws[kind] and (kind != MADE or isinstance(raws[kind][0], Recording)):
            each = [_distances(input, said, truth) for said, truth in zip(raws[kind], raws[TRUE], strict=True)]
            ones = np.ones(len(each))
            figures |= {
                f"{prefix}{name}": Statistic.ratio(np.array([found[name] for found in each]), ones) for name in each[0]
            }
    return figures


def _distances(input: Input, said: Raw, truth: Raw) -> dict[str, float]:
    """Of two pictures, or of two recordings; of waveforms at equal lengths and loudness."""
    if not isinstance(said, Recording) or not isinstance(truth, Recording):
        assert isinstance(said, np.ndarray)
        assert isinstance(truth, np.ndarray)
        pair = [picture[None].astype(np.float32) / 255 for picture in (said, truth)]
        return {"psnr": float(psnr(*pair)[0]), "ssim": float(ssim(*pair)[0])}
    samples = [said.samples, truth.samples]
    figures = {}
    if isinstance(input, WaveformInput):
        length = len(truth.samples)
        samples = [input.read(Recording(sound[:length], input.rate), None)[0][:length] for sound in samples]
        figures["log_spectral_distance"] = log_spectral_distance(*samples, rate=input.rate)
    figures["mel_cepstral_distortion"] = mel_cepstral_distortion(*(frames(sound, said.rate) for sound in samples))
    return figures


def _judge(
    reader: JudgeModel, target: str, raws: Mapping[str, list[Raw]], batch: Batch
) -> tuple[dict[str, Statistic], dict[str, float]]:
    """What a reader says of what was made, and of what is true; of examples, and of distributions."""
    asked: dict[str, Asked | Sequence[str]] = {}
    for name, input in reader.asked.items():
        key = _asked(target, name)
        asked[name] = (
            [input.decode(ids) for ids in batch.values[key]]
            if isinstance(input, TextInput)
            else Asked(batch.values[key], batch.mask[key] & batch.present[key][:, None])
        )
    key = _read(target)
    real = reader.read(batch.values[key], batch.mask.get(key))
    figures = {f"{TRUE}/{name}": value for name, value in classifier_agreement(real, asked).items()}
    distributions: dict[str, float] = {}
    for kind, prefix in ((MADE, ""), (AGAIN, f"{AGAIN}/")):
        if raws[kind]:
            read = [reader.input.read(raw, None) for raw in raws[kind]]
            values = np.stack([values for values, _ in read])
            masks = [mask for _, mask in read if mask is not None]
            found = judge(reader.read(values, np.stack(masks) if masks else None), real, asked)
            figures |= {f"{prefix}{name}": value for name, value in found.statistics.items()}
            distributions |= {f"{prefix}{name}": value for name, value in found.distributions.items()}
    return figures, distributions
