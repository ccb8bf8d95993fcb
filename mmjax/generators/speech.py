"""Speech from text: a variational autoencoder of mel frames whose prior is aligned with the text."""

import functools

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mmjax.generators.gaussian import LEAST, MOST, Gaussian
from mmjax.layers.alignment import align, regulate
from mmjax.layers.linear import make_parameter
from mmjax.layers.output import Output, find_feature
from mmjax.layers.settings import Settings
from mmjax.layers.time_net import TimeNet
from mmjax.types import Average, Batch, Feature, Fused, Metrics, Spectrogram, Text, Tokens


@chz.chz
class SpeechVae(Output):
    """Conditional variational autoencoder of speech x whose prior is read off a text (Kim et al. 2021, VITS).

    -log p(x | z, s) + beta * sum over channels of max(KL(q(z | x, s) || p(z | text, s)), free_bits), per number of x,
    and the squared error of log-durations. z is a Gaussian a frame. Under the prior, flow(z) has the mean and deviation
    that the token spoken in that frame gives, and the flow keeps volume (couplings of Dinh et al. 2015). Which token
    that is, monotonic alignment search finds in training (Kim et al. 2020, Glow-TTS); in a prediction each token lasts
    as long as the duration predictor says, which learns from the alignment and teaches nothing but itself. The fused
    summary s tells the voice and the style. p(x | z, s) is a Gaussian of one learned deviation.
    """

    target: str = chz.field(doc="name of the spectrum")
    text: str = chz.field(doc="name of the text that is spoken, whose own tokens are read")
    latent: int = chz.field(default=16, doc="channels of z")
    depth: int = chz.field(default=4, doc="blocks of the networks over frames")
    text_depth: int = chz.field(default=2, doc="blocks of those over tokens, which are the prior and the durations")
    couplings: int = chz.field(default=4, doc="layers of the flow; without any, z itself follows the tokens")
    kernel: int = chz.field(default=5, doc="frames or tokens that a block's convolution sees")
    beta: float = chz.field(default=1.0, doc="weight of the KL divergence (Higgins et al. 2017)")
    free_bits: float = chz.field(default=0.0, doc="nats a frame that each channel's divergence counts at least")
    warmup: int = chz.field(default=0, doc="steps over which beta climbs from 0")

    @chz.validate
    def _possible(self) -> None:
        if self.latent < 2 or self.latent % 2:
            raise ValueError(f"latent={self.latent} must be even and at least 2")
        if self.couplings > 100:  # they are compiled one by one
            raise ValueError(f"couplings={self.couplings} must be at most 100")
        for name in ("depth", "text_depth", "kernel"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("couplings", "beta", "free_bits", "warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")

    @property
    def unimodal(self) -> tuple[str, ...]:
        return (self.text,)

    @property
    def target_feature(self) -> str:
        return self.target

    def build(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> "Speaker":
        find_feature("SpeechVae.text", self.text, features, Text)
        spectrum = find_feature("SpeechVae.target", self.target, features, Spectrogram)
        return Speaker(self, spectrum, settings, rngs)


class Coupling(nnx.Module):
    """(a, b) -> (b + shift(a), a) of the halves of the channels of z (Dinh et al. 2015); the identity but for the
    order of channels at first."""

    def __init__(self, channels: int, config: SpeechVae, settings: Settings, rngs: nnx.Rngs):
        self.half = channels // 2
        self.shift = TimeNet(self.half, self.half, 1, config.kernel, settings, rngs, scale=0.0)
        self.dtype = settings.dtype

    def __call__(
        self, z: Float[Array, "B T Z"], frames: Bool[Array, "B T"], summary: Float[Array, "B D"]
    ) -> Float[Array, "B T Z"]:
        a, b = z[..., : self.half], z[..., self.half :]
        return jnp.concatenate([b + self._shift(a, frames, summary), a], -1)

    def invert(
        self, z: Float[Array, "B T Z"], frames: Bool[Array, "B T"], summary: Float[Array, "B D"]
    ) -> Float[Array, "B T Z"]:
        """What a call makes z of."""
        b, a = z[..., : self.half], z[..., self.half :]
        return jnp.concatenate([a, b - self._shift(a, frames, summary)], -1)

    def _shift(self, a: Array, frames: Array, summary: Array) -> Array:
        return self.shift(a.astype(self.dtype), frames, summary).astype(jnp.float32)


class Speaker(nnx.Module):
    """See `SpeechVae`. Latent numbers and statistics are in float32."""

    def __init__(self, config: SpeechVae, spectrum: Spectrogram, settings: Settings, rngs: nnx.Rngs):
        make = functools.partial(TimeNet, kernel=config.kernel, settings=settings, rngs=rngs)
        bands, latent, width = spectrum.bands, config.latent, settings.width
        self.posterior = make(bands, 2 * latent, config.depth, scale=0.1)
        self.prior = make(width, 2 * latent, config.text_depth, scale=0.1)
        self.durations = make(width, 1, config.text_depth, scale=0.1)
        self.couplings = nnx.List([Coupling(latent, config, settings, rngs) for _ in range(config.couplings)])
        self.decoder = make(latent, bands, config.depth)
        zeros = jax.nn.initializers.zeros
        self.deviation = make_parameter(zeros, (), (), rules=settings.rules, rngs=rngs)
        self.target, self.text, self.frames = config.target, config.text, spectrum.frames
        self.beta, self.free_bits, self.warmup = config.beta, config.free_bits, config.warmup
        self.bands, self.dtype = bands, settings.dtype

    def encode(self, x: Float[Array, "B T M"], frames: Bool[Array, "B T"], fused: Fused) -> Gaussian:
        """q(z | x, s), frame by frame."""
        return Gaussian.of(self.posterior(x.astype(self.dtype), frames, fused.pooled))

    def flow(self, z: Float[Array, "B T Z"], frames: Bool[Array, "B T"], fused: Fused) -> Float[Array, "B T Z"]:
        """What follows the tokens' Gaussians if z follows the prior."""
        for coupling in self.couplings:
            z = coupling(z, frames, fused.pooled)
        return z

    def inverse_flow(self, u: Float[Array, "B T Z"], frames: Bool[Array, "B T"], fused: Fused) -> Float[Array, "B T Z"]:
        """The inverse of `flow`."""
        for coupling in reversed(self.couplings):
            u = coupling.invert(u, frames, fused.pooled)
        return u

    def token_prior(self, fused: Fused) -> Gaussian:
        """The Gaussian of flow(z) in frames in which a token is spoken, token by token."""
        tokens = fused.unimodal[self.text]
        return Gaussian.of(self.prior(tokens.values, tokens.mask, fused.pooled))

    def log_durations(self, fused: Fused) -> Float[Array, "B N"]:
        """The logarithms of the frames that tokens last; no gradient goes to the tokens or the summary."""
        tokens, summary = jax.lax.stop_gradient((fused.unimodal[self.text], fused.pooled))
        return self.durations(tokens.values, tokens.mask, summary)[..., 0].astype(jnp.float32)

    def decode(self, z: Float[Array, "B T Z"], frames: Bool[Array, "B T"], fused: Fused) -> Float[Array, "B T M"]:
        """The mean of p(x | z, s)."""
        return self.decoder(z.astype(self.dtype), frames, fused.pooled).astype(jnp.float32)

    def weight(self, batch: Batch) -> Float[Array, ""]:
        return self._frames(batch).astype(jnp.float32).sum() * self.bands

    def _frames(self, batch: Batch) -> Bool[Array, "B T"]:
        """The frames that count: real ones, of examples with both speech and a text."""
        there = batch.present[self.target] & batch.present[self.text] & batch.mask[self.text].any(1)
        return batch.mask[self.target] & there[:, None]

    def loss(
        self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None
    ) -> tuple[Average, Metrics]:
        """Per number of x; the divergence is an estimate from one z, in an evaluation always by the same noise."""
        frames, tokens = self._frames(batch), fused.unimodal[self.text]
        x = jnp.where(frames[..., None], batch.values[self.target].astype(jnp.float32), 0)
        q = self.encode(x, frames, fused)
        z = q.draw(jax.random.key(0) if key is None else key)
        u, p = self.flow(z, frames, fused), self.token_prior(fused)
        path = align(log_density(u, p), frames, tokens.mask)
        p = _spread(p, path)
        # log q(z) in the mean over q, less log p of this u; the flow keeps volume.
        divergence = jnp.log(p.deviation / q.deviation) - 0.5 + 0.5 * jnp.square((u - p.mean) / p.deviation)
        divergence = jnp.where(frames[..., None], divergence, 0).sum(1)

        size = frames.sum(1).astype(jnp.float32) * self.bands
        squares = jnp.where(frames[..., None], jnp.square(self.decode(z, frames, fused) - x), 0).sum((1, 2))
        log_deviation = jnp.clip(self.deviation[...], LEAST, MOST)
        negative = squares * jnp.exp(-2 * log_deviation) / 2 + size * (log_deviation + 0.5 * jnp.log(2 * jnp.pi))
        warmup = 1.0 if step is None or not self.warmup else jnp.minimum(1.0, step / self.warmup)
        least = self.free_bits * frames.sum(1, keepdims=True)
        costs = negative + warmup * self.beta * jnp.maximum(divergence, least).sum(-1)

        duration_error, length_error = self._timing(path, fused)

        def each(totals: Float[Array, "B"]) -> Average:
            """Of one total an example, the average of its numbers."""
            return Average.of(totals / jnp.maximum(size, 1), size)

        loss = each(costs + size * duration_error)
        metrics: Metrics = {
            "reconstruction": each(negative),
            "square_error": each(squares),
            "kl_per_frame": Average(divergence.sum(1), frames.sum(1).astype(jnp.float32)),
            "duration_error": Average.of(duration_error, size),
            "length_error": Average.of(length_error, size > 0),
        }
        return loss, metrics

    def _timing(self, path: Bool[Array, "B T N"], fused: Fused) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        """The mean squared error of tokens' log-durations, and what the predicted length is wrong by, as a share."""
        lasted, said = path.sum(1), self.log_durations(fused)
        spoken, length = lasted > 0, jnp.maximum(lasted.sum(1), 1)
        squares = jnp.where(spoken, jnp.square(said - jnp.log(jnp.maximum(lasted, 1))), 0).sum(1)
        predicted = _whole(said, fused.unimodal[self.text]).sum(1)
        return squares / jnp.maximum(spoken.sum(1), 1), jnp.abs(predicted - length) / length

    def predict(self, fused: Fused, key: jax.Array | None) -> dict[str, Array]:
        """Mel frames Float[B T M] of the text and which of them are real, cut at the feature's length.

        The prior's mean without a key, else a draw.
        """
        path = regulate(_whole(self.log_durations(fused), fused.unimodal[self.text]), self.frames)
        frames, p = path.any(2), _spread(self.token_prior(fused), path)
        z = self.inverse_flow(p.draw(key), frames, fused)
        return {"values": jnp.where(frames[..., None], self.decode(z, frames, fused), 0), "mask": frames}


def log_density(u: Float[Array, "B T Z"], p: Gaussian) -> Float[Array, "B T N"]:
    """The log-density of every frame under every token's Gaussian."""
    precision = 1 / jnp.square(p.deviation)
    # The square is taken apart, so that no [B T N Z] is made; that leaves differences of large numbers.
    product = functools.partial(jnp.einsum, "btz,bnz->btn", precision=jax.lax.Precision.HIGHEST)
    squares = product(jnp.square(u), precision) - 2 * product(u, p.mean * precision)
    of_token = jnp.square(p.mean) * precision + 2 * jnp.log(p.deviation) + jnp.log(2 * jnp.pi)
    return -0.5 * (squares + of_token.sum(-1)[:, None])


def _spread(p: Gaussian, path: Bool[Array, "B T N"]) -> Gaussian:
    """Each frame's Gaussian, which is its token's; standard where it has none."""
    chosen = path.astype(jnp.float32)
    mean, deviation = (jnp.einsum("btn,bnz->btz", chosen, part) for part in (p.mean, p.deviation))
    return Gaussian(mean, deviation + ~path.any(2, keepdims=True))


def _whole(log_durations: Float[Array, "B N"], tokens: Tokens) -> Int[Array, "B N"]:
    """Frames of each token, at least one, and none of tokens that are not real."""
    # Beyond e^9 frames, more than any feature has, the sum of the durations might not be a number.
    frames = jnp.round(jnp.exp(jnp.clip(log_durations, 0, 9)))
    return jnp.where(tokens.mask, frames, 0).astype(jnp.int32)
