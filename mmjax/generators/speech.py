"""Text to speech: a variational autoencoder of mel frames whose prior is aligned with the text."""

import functools

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mmjax.generators.gaussian import MAX_LOG_DEVIATION, MIN_LOG_DEVIATION, Gaussian
from mmjax.layers.alignment import durations_to_alignment, monotonic_align
from mmjax.layers.linear import make_parameter
from mmjax.layers.output import Output, OutputModule, find_feature
from mmjax.layers.settings import Settings
from mmjax.layers.temporal_conv import TemporalConvNet
from mmjax.types import Average, Batch, Feature, Fused, Metrics, Spectrogram, Text, Tokens


@chz.chz
class SpeechVae(Output):
    """Conditional VAE of speech x with a prior computed from a text (Kim et al. 2021, VITS).

    The loss is -log p(x | z, s) + beta * sum over channels of max(KL(q(z | x, s) || p(z | text, s)), free_bits), per
    number of x, plus the squared error of log-durations. z is a Gaussian per frame. Under the prior, flow(z) has the
    mean and deviation of the token spoken in that frame, and the flow preserves volume (couplings of Dinh et al. 2015).
    In training monotonic alignment search finds that token (Kim et al. 2020, Glow-TTS). In a prediction the duration
    predictor says how long each token lasts; it learns from the alignment, and its gradient reaches nothing else. The
    fused summary s carries voice and style. p(x | z, s) is a Gaussian with one learned deviation.
    """

    target: str = chz.field(doc="name of the spectrogram")
    text: str = chz.field(doc="name of the text to speak; its own tokens are read")
    latent: int = chz.field(default=16, doc="channels of z")
    depth: int = chz.field(default=4, doc="blocks of the networks over frames")
    text_depth: int = chz.field(default=2, doc="blocks of the networks over tokens: prior and durations")
    couplings: int = chz.field(default=4, doc="coupling layers of the flow; 0: no flow")
    kernel: int = chz.field(default=5, doc="width of the blocks' convolutions, in frames or tokens")
    beta: float = chz.field(default=1.0, doc="weight of the KL divergence (Higgins et al. 2017)")
    free_bits: float = chz.field(default=0.0, doc="minimum of each channel's divergence in the loss, nats per frame")
    warmup: int = chz.field(default=0, doc="steps over which beta rises from 0")

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
    def unimodal_inputs(self) -> tuple[str, ...]:
        return (self.text,)

    @property
    def target_feature(self) -> str:
        return self.target

    def build(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> "SpeechVaeModule":
        find_feature("SpeechVae.text", self.text, features, Text)
        spectrum = find_feature("SpeechVae.target", self.target, features, Spectrogram)
        return SpeechVaeModule(self, spectrum, settings, rngs)


class Coupling(nnx.Module):
    """(a, b) -> (b + shift(a), a) for the halves of the channels of z (Dinh et al. 2015).

    The shift is 0 at first.
    """

    def __init__(self, channels: int, config: SpeechVae, settings: Settings, rngs: nnx.Rngs):
        self.half = channels // 2
        self.shift = TemporalConvNet(self.half, self.half, 1, config.kernel, settings, rngs, scale=0.0)
        self.dtype = settings.dtype

    def __call__(
        self, z: Float[Array, "B T Z"], frames: Bool[Array, "B T"], summary: Float[Array, "B D"]
    ) -> Float[Array, "B T Z"]:
        a, b = z[..., : self.half], z[..., self.half :]
        return jnp.concatenate([b + self._shift(a, frames, summary), a], -1)

    def inverse(
        self, z: Float[Array, "B T Z"], frames: Bool[Array, "B T"], summary: Float[Array, "B D"]
    ) -> Float[Array, "B T Z"]:
        """The inverse of a call."""
        b, a = z[..., : self.half], z[..., self.half :]
        return jnp.concatenate([a, b - self._shift(a, frames, summary)], -1)

    def _shift(self, a: Array, frames: Array, summary: Array) -> Array:
        return self.shift(a.astype(self.dtype), frames, summary).astype(jnp.float32)


class SpeechVaeModule(OutputModule):
    """See `SpeechVae`. Latents and statistics are in float32."""

    def __init__(self, config: SpeechVae, spectrum: Spectrogram, settings: Settings, rngs: nnx.Rngs):
        make = functools.partial(TemporalConvNet, kernel=config.kernel, settings=settings, rngs=rngs)
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
        """Maps z to the space in which the prior is a Gaussian per token."""
        for coupling in self.couplings:
            z = coupling(z, frames, fused.pooled)
        return z

    def inverse_flow(self, u: Float[Array, "B T Z"], frames: Bool[Array, "B T"], fused: Fused) -> Float[Array, "B T Z"]:
        """The inverse of `flow`."""
        for coupling in reversed(self.couplings):
            u = coupling.inverse(u, frames, fused.pooled)
        return u

    def token_prior(self, fused: Fused) -> Gaussian:
        """The Gaussian of flow(z) in the frames of each token."""
        tokens = fused.unimodal[self.text]
        return Gaussian.of(self.prior(tokens.values, tokens.mask, fused.pooled))

    def log_durations(self, fused: Fused) -> Float[Array, "B N"]:
        """The predicted log-durations of tokens, in frames, without gradient to tokens or summary."""
        tokens, summary = jax.lax.stop_gradient((fused.unimodal[self.text], fused.pooled))
        return self.durations(tokens.values, tokens.mask, summary)[..., 0].astype(jnp.float32)

    def decode(self, z: Float[Array, "B T Z"], frames: Bool[Array, "B T"], fused: Fused) -> Float[Array, "B T M"]:
        """The mean of p(x | z, s)."""
        return self.decoder(z.astype(self.dtype), frames, fused.pooled).astype(jnp.float32)

    def weight(self, batch: Batch) -> Float[Array, ""]:
        return self._frames(batch).astype(jnp.float32).sum() * self.bands

    def _frames(self, batch: Batch) -> Bool[Array, "B T"]:
        """The real frames of examples with both speech and text."""
        there = batch.present[self.target] & batch.present[self.text] & batch.mask[self.text].any(1)
        return batch.mask[self.target] & there[:, None]

    def loss(
        self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None
    ) -> tuple[Average, Metrics]:
        """The loss per number of x.

        The divergence is estimated from one z, in an evaluation always with the same noise.
        """
        frames, tokens = self._frames(batch), fused.unimodal[self.text]
        x = jnp.where(frames[..., None], batch.values[self.target].astype(jnp.float32), 0)
        q = self.encode(x, frames, fused)
        z = q.sample(jax.random.key(0) if key is None else key)
        u, p = self.flow(z, frames, fused), self.token_prior(fused)
        path = monotonic_align(log_density(u, p), frames, tokens.mask)
        p = _spread(p, path)
        # log q(z) in the mean over q, less log p of this u; the flow keeps volume.
        divergence = jnp.log(p.deviation / q.deviation) - 0.5 + 0.5 * jnp.square((u - p.mean) / p.deviation)
        divergence = jnp.where(frames[..., None], divergence, 0).sum(1)

        size = frames.sum(1).astype(jnp.float32) * self.bands
        squares = jnp.where(frames[..., None], jnp.square(self.decode(z, frames, fused) - x), 0).sum((1, 2))
        log_deviation = jnp.clip(self.deviation[...], MIN_LOG_DEVIATION, MAX_LOG_DEVIATION)
        negative = squares * jnp.exp(-2 * log_deviation) / 2 + size * (log_deviation + 0.5 * jnp.log(2 * jnp.pi))
        warmup = 1.0 if step is None or not self.warmup else jnp.minimum(1.0, step / self.warmup)
        least = self.free_bits * frames.sum(1, keepdims=True)
        costs = negative + warmup * self.beta * jnp.maximum(divergence, least).sum(-1)

        duration_error, length_error = self._timing(path, fused)

        def each(totals: Float[Array, "B"]) -> Average:
            """The average per number from one total per example."""
            return Average.of(totals / jnp.maximum(size, 1), size)

        loss = each(costs + size * duration_error)
        metrics: Metrics = {
            "reconstruction": each(negative),
            "squared_error": each(squares),
            "kl_per_frame": Average(divergence.sum(1), frames.sum(1).astype(jnp.float32)),
            "duration_error": Average.of(duration_error, size),
            "length_error": Average.of(length_error, size > 0),
        }
        return loss, metrics

    def _timing(self, path: Bool[Array, "B T N"], fused: Fused) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        """Mean squared error of log-durations, and the relative error of the predicted length."""
        lasted, log_durations = path.sum(1), self.log_durations(fused)
        spoken, length = lasted > 0, jnp.maximum(lasted.sum(1), 1)
        squares = jnp.where(spoken, jnp.square(log_durations - jnp.log(jnp.maximum(lasted, 1))), 0).sum(1)
        predicted = _whole_frames(log_durations, fused.unimodal[self.text]).sum(1)
        return squares / jnp.maximum(spoken.sum(1), 1), jnp.abs(predicted - length) / length

    def predict(self, fused: Fused, key: jax.Array | None) -> dict[str, Array]:
        """Mel frames Float[B T M] of the text and their mask, cut at the feature's length.

        The prior's mean without a key, otherwise a sample.
        """
        path = durations_to_alignment(_whole_frames(self.log_durations(fused), fused.unimodal[self.text]), self.frames)
        frames, p = path.any(2), _spread(self.token_prior(fused), path)
        z = self.inverse_flow(p.sample(key), frames, fused)
        return {"values": jnp.where(frames[..., None], self.decode(z, frames, fused), 0), "mask": frames}


def log_density(u: Float[Array, "B T Z"], p: Gaussian) -> Float[Array, "B T N"]:
    """The log-density of every frame under every token's Gaussian."""
    precision = 1 / jnp.square(p.deviation)
    # The square is expanded, so that no [B T N Z] is formed; that leaves differences of large numbers.
    product = functools.partial(jnp.einsum, "btz,bnz->btn", precision=jax.lax.Precision.HIGHEST)
    squares = product(jnp.square(u), precision) - 2 * product(u, p.mean * precision)
    of_token = jnp.square(p.mean) * precision + 2 * jnp.log(p.deviation) + jnp.log(2 * jnp.pi)
    return -0.5 * (squares + of_token.sum(-1)[:, None])


def _spread(p: Gaussian, path: Bool[Array, "B T N"]) -> Gaussian:
    """Each frame's Gaussian: that of its token, or a standard one where it has none."""
    chosen = path.astype(jnp.float32)
    mean, deviation = (jnp.einsum("btn,bnz->btz", chosen, part) for part in (p.mean, p.deviation))
    return Gaussian(mean, deviation + ~path.any(2, keepdims=True))


def _whole_frames(log_durations: Float[Array, "B N"], tokens: Tokens) -> Int[Array, "B N"]:
    """Whole frames of each token: at least one, and 0 for masked tokens."""
    # Beyond e^9 frames, more than any feature has, the sum of the durations might not be a number.
    frames = jnp.round(jnp.exp(jnp.clip(log_durations, 0, 9)))
    return jnp.where(tokens.mask, frames, 0).astype(jnp.int32)
