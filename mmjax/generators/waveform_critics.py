"""HiFi-GAN's multi-period and multi-scale critics of waveforms."""

import functools

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmjax.generators.critics import Critic, CriticOutput
from mmjax.layers.conv import Conv
from mmjax.layers.patches import group_sequence
from mmjax.layers.settings import Settings
from mmjax.sharding.rules import Rules


@chz.chz
class WaveformCritic(Critic):
    """The multi-period and multi-scale discriminators of HiFi-GAN (Kong et al. 2020, section 2.3).

    A period discriminator reads the waveform in rows of p samples, and only along columns, so between samples that are
    p apart; a scale discriminator reads it averaged over s samples. Convolutions are neither grouped nor normalised.
    """

    periods: tuple[int, ...] = chz.field(default=(2, 3, 5, 7, 11), doc="period in samples of each multi-period network")
    scales: tuple[int, ...] = chz.field(default=(1, 2, 4), doc="averaged samples of each multi-scale network")
    widths: tuple[int, ...] = chz.field(default=(16, 32, 64), doc="channels of each network's strided convolutions")

    @chz.validate
    def _possible(self) -> None:
        if min((1, *self.periods, *self.scales, *self.widths)) < 1 or not self.widths:
            raise ValueError("periods, scales and widths must be positive, and widths must not be empty")
        if not self.periods and not self.scales:
            raise ValueError("a WaveformCritic needs a period or a scale")

    def build(self, channels: int, settings: Settings, rngs: nnx.Rngs) -> "WaveformCriticModule":
        return WaveformCriticModule(self, settings, rngs)


class Tower(nnx.Module):
    """Strided convolutions with leaky ReLU, and a score for every remaining position."""

    def __init__(
        self,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        score: tuple[int, ...],
        widths: tuple[int, ...],
        *,
        rules: Rules,
        rngs: nnx.Rngs,
    ):
        make = functools.partial(Conv, rules=rules, rngs=rngs)
        pairs = zip((1, *widths), widths, strict=False)
        self.layers = nnx.List([make(before, after, kernel, stride=stride, scale=2.0) for before, after in pairs])
        self.score = make(widths[-1], 1, score, shard_inputs=True)

    def __call__(self, x: Float[Array, "B *S 1"]) -> tuple[Float[Array, "B *s"], list[Float[Array, "B ..."]]]:
        """The scores, in float32, and the activations of each layer."""
        features = []
        for layer in self.layers:
            x = jax.nn.leaky_relu(layer(x), 0.1)
            features.append(x)
        return self.score(x)[..., 0].astype(jnp.float32), features


class WaveformCriticModule(nnx.Module):
    """See `WaveformCritic`."""

    def __init__(self, config: WaveformCritic, settings: Settings, rngs: nnx.Rngs):
        make = functools.partial(Tower, widths=config.widths, rules=settings.rules, rngs=rngs)
        self.of_periods = nnx.List([make((5, 1), (3, 1), (3, 1)) for _ in config.periods])
        self.of_scales = nnx.List([make((15,), (4,), (3,)) for _ in config.scales])
        self.periods, self.scales = config.periods, config.scales
        self.dtype, self.rules = settings.dtype, settings.rules

    def __call__(self, x: Float[Array, "B T"], condition: Float[Array, "B D"]) -> CriticOutput:
        """The scores of every network, periods first; the condition is not read."""
        x = x.astype(self.dtype)
        rows = [self._rows(x, period)[..., None] for period in self.periods]
        averages = [self._rows(x, scale).mean(2)[..., None] for scale in self.scales]
        towers = (*self.of_periods, *self.of_scales)
        found = [tower(seen) for tower, seen in zip(towers, (*rows, *averages), strict=True)]
        features = (feature for _, features in found for feature in features)
        return CriticOutput(tuple(scores for scores, _ in found), tuple(features))

    def _rows(self, x: Float[Array, "B T"], length: int) -> Float[Array, "B R {length}"]:
        """The samples in rows, the last one padded with zeros."""
        return group_sequence(jnp.pad(x, ((0, 0), (0, -x.shape[1] % length))), length, rules=self.rules)
