"""Waveforms from log-mel frames."""

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
from mmjax.generators.adversary import Adversary, AdversaryModule, GeneratorOutput, LeastSquares
from mmjax.generators.phases import frequencies, sound_of
from mmjax.generators.stft import spectral_distance
from mmjax.generators.waveform_critics import WaveformCritic
from mmjax.layers.conv import Conv
from mmjax.layers.output import Output, find_feature
from mmjax.layers.patches import cut_sequence, reshape
from mmjax.layers.settings import Settings
from mmjax.sharding.rules import Rules
from mmjax.types import Average, Batch, Feature, Fused, Metrics, Spectrogram, Waveform

SLOPE = 0.1  # of the leaky rectifiers
LOUDEST = 6.0  # logarithm of a magnitude to start from, beyond full scale in windows of up to 1,600 samples
GAME = Adversary(
    loss=LeastSquares(), critic=WaveformCritic(), weight=0.5, matching=1.0, warmup=500, penalty=0.0, augment=False
)


@chz.chz
class Vocoder(Output):
    """HiFi-GAN (Kong et al. 2020), from the log-mel frames of a recording to its samples.

    The generator plays against critics and keeps near the recording by `spectral_distance`, averaged over `windows`:
    the multi-resolution STFT loss of Yamamoto et al. (2020) and HiFi-GAN's own of mel bands. A place multiplies by
    nearest neighbours and a convolution instead of a transposed one, which leaves no pattern of its stride, and weights
    are not normalised. The samples that `factors` leave are made at once, several of a place (Shi et al. 2016): a level
    of many places and few channels takes as long as all others. It reads no fused features, and predicts nothing.

    It starts from a sound of the frames, which every level sees and the samples are added to, as WaveFit does (Koizumi
    et al. 2022): phases that hold together over frames are what convolutions take longest to learn.
    """

    target: str = chz.field(doc="name of the waveform")
    mel: str = chz.field(doc="name of the spectrum of the same recording")
    channels: int = chz.field(default=128, doc="channels of a frame, halved whenever its places multiply")
    factors: tuple[int, ...] = chz.field(
        default=(5, 5, 4), doc="how often a place multiplies, a level each; together they divide the samples of a frame"
    )
    kernels: tuple[int, ...] = chz.field(default=(3, 7, 11), doc="places that each of a level's residual branches sees")
    dilations: tuple[int, ...] = chz.field(default=(1, 3, 5), doc="how far these are apart, a block of a branch each")
    windows: tuple[int, ...] = chz.field(default=(128, 256, 512), doc="samples of the loss's windows, multiples of 8")
    rounds: int = chz.field(
        default=8,
        doc="rounds of Griffin-Lim that find the phases of the sound to start from; 0: there is no such sound",
    )
    adversary: Adversary | None = chz.field(default=GAME, doc="the critics and their game; None: the distance alone")

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
            raise ValueError("adversary needs critic=WaveformCritic and augment=false, as others judge pictures")

    def build(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> "VocoderModule":
        wave = find_feature("Vocoder.target", self.target, features, Waveform)
        spectrum = find_feature("Vocoder.mel", self.mel, features, Spectrogram)
        hop, at_once = spectrum.seconds * wave.rate, self.at_once(spectrum, wave)
        if at_once < 1 or not math.isclose(at_once * math.prod(self.factors), hop):
            raise UserError(
                f"Vocoder.factors={self.factors} make {math.prod(self.factors)} places of a frame of {self.mel}, "
                f"which has {hop:g} samples; choose factors whose product divides that"
            )
        if spectrum.frames * hop < wave.samples:
            raise UserError(
                f"{self.target} is longer than {self.mel}: give data.inputs.{self.target}.seconds and "
                f"data.inputs.{self.mel}.seconds the same value"
            )
        return VocoderModule(self, spectrum, wave, settings, rngs)

    def at_once(self, spectrum: Spectrogram, wave: Waveform) -> int:
        """The samples of each place at last."""
        return round(spectrum.seconds * wave.rate / math.prod(self.factors))

    def build_critic(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> AdversaryModule | None:
        return None if self.adversary is None else self.adversary.build(1, settings, rngs)


class Branch(nnx.Module):
    """x + conv(act(conv(act(x)))) for every dilation of the inner convolution; act is a leaky rectifier."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], *, rules: Rules, rngs: nnx.Rngs):
        conv = functools.partial(Conv, channels, channels, (kernel,), rules=rules, rngs=rngs)
        self.inner = nnx.List([conv(dilation=dilation) for dilation in dilations])
        self.outer = nnx.List([conv(scale=0.1) for _ in dilations])

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = x + outer(_activate(inner(_activate(x))))
        return x


class Start(nnx.Module):
    """A first sound of log-mel frames: magnitudes by two convolutions over them, then phases by Griffin-Lim."""

    def __init__(self, config: Vocoder, bands: int, hop: int, rules: Rules, rngs: nnx.Rngs):
        make = functools.partial(Conv, rules=rules, rngs=rngs)
        self.inner = make(bands, 2 * config.channels, (5,))
        self.outer = make(2 * config.channels, frequencies(hop), (3,), scale=0.1)
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
        return sound_of(magnitudes, self.hop, self.rounds, rules=self.rules)


class VocoderModule(nnx.Module):
    """See `Vocoder`: frames -> for every factor, more places and the mean of residual branches -> samples."""

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
        branch = functools.partial(Branch, dilations=config.dilations, rules=rules, rngs=rngs)
        self.levels = nnx.List([nnx.List([branch(width, kernel) for kernel in config.kernels]) for width in widths[1:]])
        at_once = config.at_once(spectrum, wave)
        hop = at_once * math.prod(config.factors)
        self.start = Start(config, spectrum.bands, hop, rules, rngs) if config.rounds else None
        self.out = make(widths[-1], at_once, (7,), few_outputs=True)
        self.factors, self.windows, self.samples, self.rate = config.factors, config.windows, wave.samples, wave.rate
        self.target, self.mel, self.dtype, self.rules = config.target, config.mel, settings.dtype, rules

    def decode(self, mel: Float[Array, "B T M"], mask: Bool[Array, "B T"]) -> Float[Array, "B S"]:
        """Samples in [-1, 1] of log-mel frames, of which those that are not real count as zeros; S = T hop."""
        mel = jnp.where(mask[..., None], mel, 0).astype(self.dtype)
        x, start = self.stem(mel), jnp.zeros(()) if self.start is None else self.start(mel, mask)
        for level, (factor, widen, branches) in enumerate(zip(self.factors, self.widen, self.levels, strict=True)):
            x = widen(repeat(_activate(x), factor, self.rules))
            if self.start is not None:
                x = x + self.start.joins[level](cut_sequence(start, start.shape[1] // x.shape[1], rules=self.rules))
            first, *others = (branch(x) for branch in branches)
            x = sum(others, first) / len(branches)
        samples = self.out(_activate(x)).astype(jnp.float32)
        samples = reshape(samples, samples.shape[1] * samples.shape[2], rules=self.rules)
        return jnp.tanh(samples + start)

    def weight(self, batch: Batch) -> Float[Array, ""]:
        return self._real(batch).astype(jnp.float32).sum()

    def _real(self, batch: Batch) -> Bool[Array, "B S"]:
        """The samples that count: real ones, of examples that also have the spectrum."""
        return batch.mask[self.target] & (batch.present[self.target] & batch.present[self.mel])[:, None]

    def generate(
        self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None
    ) -> GeneratorOutput:
        """What it makes of the batch's frames. Every real sample weighs alike, whichever example it is of."""
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

    def loss(
        self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None
    ) -> tuple[Average, Metrics]:
        return self.generate(fused, batch, key, step).loss()

    def reconstruct(self, fused: Fused, batch: Batch) -> Float[Array, "B S"]:
        """The samples that the batch's frames become, 0 where the recordings have none."""
        return self.generate(fused, batch, None, None).fake

    def predict(self, fused: Fused, key: jax.Array | None) -> dict[str, Array]:
        return {}


def repeat(x: Float[Array, "B T C"], factor: int, rules: Rules) -> Float[Array, "B T*{factor} C"]:
    """Every place as `factor` places."""
    _, time, channels = x.shape
    return reshape(jnp.stack([x] * factor, 2), time * factor, channels, rules=rules)


def _activate(x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
    return jax.nn.leaky_relu(x, SLOPE)
