"""Vocoder: waveforms from log-mel frames."""

import functools
import itertools
import math
import operator

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mmjax.errors import UserError
from mmjax.generators.adversary import AdversarialGenerator, Adversary, AdversaryModule, GeneratorOutput, LeastSquares
from mmjax.generators.phase_reconstruction import frequency_count, griffin_lim
from mmjax.generators.stft import spectral_distance
from mmjax.generators.waveform_critics import WaveformCritic
from mmjax.layers.conv import Conv
from mmjax.layers.output import Output, find_feature
from mmjax.layers.patches import group_sequence, reshape
from mmjax.layers.settings import Settings
from mmjax.sharding.rules import Rules
from mmjax.types import Average, Batch, Feature, Fused, Metrics, Spectrogram, Waveform

SLOPE = 0.1  # of the leaky rectifiers
LOUDEST = 6.0  # logarithm of a magnitude to start from, beyond full scale in windows of up to 1,600 samples
DEFAULT_ADVERSARY = Adversary(
    loss=LeastSquares(),
    critic=WaveformCritic(),
    weight=0.5,
    feature_matching=1.0,
    warmup=500,
    gradient_penalty=0.0,
    augment=False,
)


@chz.chz
class Vocoder(Output):
    """HiFi-GAN (Kong et al. 2020), from the log-mel frames of a recording to its samples.

    The generator is trained with critics and `spectral_distance`, averaged over `windows`: the multi-resolution STFT
    loss of Yamamoto et al. (2020) and HiFi-GAN's own in mel bands. Upsampling is by nearest neighbours and a
    convolution instead of a transposed one, which leaves no stride pattern, and weights are not normalised. The last
    upsampling is a reshape of channels to samples (Shi et al. 2016), because a level of many positions and few channels
    takes as long as all others. It does not read fused features, and predicts nothing.

    It starts from a first Griffin-Lim waveform of the frames, which every level reads and to which the output is added,
    as in WaveFit (Koizumi et al. 2022): phases that are consistent over frames are what convolutions take longest to
    learn.
    """

    target: str = chz.field(doc="name of the waveform")
    mel: str = chz.field(doc="name of the spectrogram of the same recording")
    channels: int = chz.field(default=128, doc="channels of a frame, halved at each upsampling")
    factors: tuple[int, ...] = chz.field(
        default=(5, 5, 4), doc="upsampling factor of each level; their product divides the samples of a frame"
    )
    kernels: tuple[int, ...] = chz.field(default=(3, 7, 11), doc="kernel size of each residual branch")
    dilations: tuple[int, ...] = chz.field(default=(1, 3, 5), doc="dilation of each block of a branch")
    windows: tuple[int, ...] = chz.field(
        default=(128, 256, 512), doc="window sizes of the spectral distance in samples, multiples of 8"
    )
    rounds: int = chz.field(
        default=8,
        doc="Griffin-Lim iterations for the initial waveform; 0: no initial waveform",
    )
    adversary: Adversary | None = chz.field(
        default=DEFAULT_ADVERSARY, doc="the critics and their loss; None: only the spectral distance"
    )

    @chz.validate
    def _possible(self) -> None:
        for name in ("factors", "kernels", "dilations", "windows"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be positive numbers, one or more")
        if self.rounds < 0:
            raise ValueError(f"rounds={self.rounds} must not be negative")
        if any(window % 8 for window in self.windows):
            raise ValueError(f"windows={self.windows} must be multiples of 8")
        if self.channels < 2 ** len(self.factors):
            raise ValueError(f"channels={self.channels} cannot be halved {len(self.factors)} times")

        game = self.adversary
        if game is not None and (game.augment or not isinstance(game.critic, WaveformCritic)):
            raise ValueError(
                "adversary needs critic=WaveformCritic and augment=false, because other critics score images"
            )

    @property
    def generated_feature(self) -> str:
        return self.target

    @property
    def spectrogram_feature(self) -> str:
        return self.mel

    def build(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> "VocoderModule":
        wave = find_feature("Vocoder.target", self.target, features, Waveform)
        spectrum = find_feature("Vocoder.mel", self.mel, features, Spectrogram)
        hop, samples_per_position = spectrum.seconds * wave.rate, self.samples_per_position(spectrum, wave)
        if samples_per_position < 1 or not math.isclose(samples_per_position * math.prod(self.factors), hop):
            raise UserError(
                f"Vocoder.factors={self.factors} upsample a frame of {self.mel} {math.prod(self.factors)} times, "
                f"but it has {hop:g} samples; choose factors whose product divides that"
            )
        if spectrum.frames * hop < wave.samples:
            raise UserError(
                f"{self.target} is longer than {self.mel}: give data.inputs.{self.target}.seconds and "
                f"data.inputs.{self.mel}.seconds the same value"
            )
        return VocoderModule(self, spectrum, wave, settings, rngs)

    def samples_per_position(self, spectrum: Spectrogram, wave: Waveform) -> int:
        """The samples per position of the last level."""
        return round(spectrum.seconds * wave.rate / math.prod(self.factors))

    def build_critic(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> AdversaryModule | None:
        return None if self.adversary is None else self.adversary.build(1, settings, rngs)


class ResidualBranch(nnx.Module):
    """x + conv(act(conv(act(x)))) for every dilation of the inner convolution; act is leaky ReLU."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], *, rules: Rules, rngs: nnx.Rngs):
        conv = functools.partial(Conv, channels, channels, (kernel,), rules=rules, rngs=rngs)
        self.inner = nnx.List([conv(dilation=dilation) for dilation in dilations])
        self.outer = nnx.List([conv(scale=0.1) for _ in dilations])

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = x + outer(_activate(inner(_activate(x))))
        return x


class InitialWaveform(nnx.Module):
    """A first waveform from log-mel frames: magnitudes by two convolutions, phases by Griffin-Lim."""

    def __init__(self, config: Vocoder, bands: int, hop: int, rules: Rules, rngs: nnx.Rngs):
        make = functools.partial(Conv, rules=rules, rngs=rngs)
        self.inner = make(bands, 2 * config.channels, (5,))
        self.outer = make(2 * config.channels, frequency_count(hop), (3,), scale=0.1)
        places = itertools.accumulate(config.factors, operator.mul)
        # How each level sees the sound, the samples of a place as its channels.
        self.joins = nnx.List(
            [make(hop // count, config.channels // 2**level, (3,)) for level, count in enumerate(places, 1)]
        )
        self.hop, self.rounds, self.rules = hop, config.rounds, rules

    def __call__(self, mel: Float[Array, "B T M"], mask: Bool[Array, "B T"]) -> Float[Array, "B S"]:
        """S = T hop samples."""
        logs = self.outer(_activate(self.inner(mel))).astype(jnp.float32)
        magnitudes = jnp.where(mask[..., None], jnp.exp(jnp.minimum(logs, LOUDEST)), 0)
        return griffin_lim(magnitudes, self.hop, self.rounds, rules=self.rules)


class VocoderModule(AdversarialGenerator):
    """See `Vocoder`: frames -> upsampling and residual branches per factor -> samples."""

    reconstructs = True

    def __init__(self, config: Vocoder, spectrum: Spectrogram, wave: Waveform, settings: Settings, rngs: nnx.Rngs):
        rules = settings.rules
        make = functools.partial(Conv, rules=rules, rngs=rngs)
        self.stem = make(spectrum.bands, config.channels, (7,))
        widths = [config.channels // 2**level for level in range(len(config.factors) + 1)]
        self.widen = nnx.List(
            [
                make(before, after, (2 * factor + 1,))
                for before, after, factor in zip(widths, widths[1:], config.factors, strict=False)
            ]
        )
        branch = functools.partial(ResidualBranch, dilations=config.dilations, rules=rules, rngs=rngs)
        self.levels = nnx.List([nnx.List([branch(width, kernel) for kernel in config.kernels]) for width in widths[1:]])
        samples_per_position = config.samples_per_position(spectrum, wave)
        hop = samples_per_position * math.prod(config.factors)
        self.start = InitialWaveform(config, spectrum.bands, hop, rules, rngs) if config.rounds else None
        self.out = make(widths[-1], samples_per_position, (7,), shard_inputs=True)
        self.factors, self.windows, self.samples, self.rate = config.factors, config.windows, wave.samples, wave.rate
        self.target, self.mel, self.dtype, self.rules = config.target, config.mel, settings.dtype, rules

    def decode(self, mel: Float[Array, "B T M"], mask: Bool[Array, "B T"]) -> Float[Array, "B S"]:
        """Samples in [-1, 1] from log-mel frames, of which masked ones count as zeros; S = T hop."""
        mel = jnp.where(mask[..., None], mel, 0).astype(self.dtype)
        x, start = self.stem(mel), jnp.zeros(()) if self.start is None else self.start(mel, mask)
        for level, (factor, widen, branches) in enumerate(zip(self.factors, self.widen, self.levels, strict=True)):
            x = widen(upsample(_activate(x), factor, self.rules))
            if self.start is not None:
                x = x + self.start.joins[level](group_sequence(start, start.shape[1] // x.shape[1], rules=self.rules))
            first, *others = (branch(x) for branch in branches)
            x = sum(others, first) / len(branches)
        samples = self.out(_activate(x)).astype(jnp.float32)
        samples = reshape(samples, samples.shape[1] * samples.shape[2], rules=self.rules)
        return jnp.tanh(samples + start)

    def weight(self, batch: Batch) -> Float[Array, ""]:
        return self._real(batch).astype(jnp.float32).sum()

    def _real(self, batch: Batch) -> Bool[Array, "B S"]:
        """The real samples of examples that also have the spectrogram."""
        return batch.mask[self.target] & (batch.present[self.target] & batch.present[self.mel])[:, None]

    def generate(
        self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None
    ) -> GeneratorOutput:
        """Waveforms of the batch's frames; every real sample has the same weight in the loss."""
        real = self._real(batch)
        true = jnp.where(real, batch.values[self.target].astype(jnp.float32), 0)
        fake = self.decode(batch.values[self.mel], batch.mask[self.mel] & batch.present[self.mel][:, None])
        fake = fake[:, : self.samples]

        def distance(fake: Float[Array, "B S"]) -> Float[Array, "B"]:
            each = [spectral_distance(fake, true, real, window, self.rate, rules=self.rules) for window in self.windows]
            return jnp.stack(each).mean(0)

        size = real.sum(1).astype(jnp.float32)
        metrics: Metrics = {"spectral_distance": Average.of(distance(fake), size)}
        return GeneratorOutput(true, jnp.where(real, fake, 0), distance, jnp.zeros_like(size), size, metrics)

    def reconstruct(self, fused: Fused, batch: Batch) -> Float[Array, "B S"]:
        """The waveforms of the batch's frames, 0 where the recordings have no samples."""
        return self.generate(fused, batch, None, None).fake


def upsample(x: Float[Array, "B T C"], factor: int, rules: Rules) -> Float[Array, "B T*{factor} C"]:
    """Nearest-neighbour upsampling by `factor`."""
    _, time, channels = x.shape
    return reshape(jnp.stack([x] * factor, 2), time * factor, channels, rules=rules)


def _activate(x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
    return jax.nn.leaky_relu(x, SLOPE)
