"""Text generation with a latent variable."""

import dataclasses

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mmjax.generators.decoding import Decoding
from mmjax.generators.gaussian import Gaussian
from mmjax.generators.text import TextDecoder, TextDecoderModule
from mmjax.layers.attention import AttentionPool, Block
from mmjax.layers.linear import Linear
from mmjax.layers.output import find_feature
from mmjax.layers.settings import Settings
from mmjax.types import Average, Batch, Feature, Fused, Metrics, Text, Tokens


@chz.chz
class TextVae(TextDecoder):
    """A `TextDecoder` with one latent z per text (Sohn et al. 2015; Bowman et al. 2016).

    So one input can have many texts. The loss is -log p(text | z, fused) + beta * sum over numbers of z of max(KL(q(z |
    text, fused) || p(z | fused)), free_bits), per token; p and q are Gaussians. The decoder reads z as one more fused
    token.
    """

    latent: int = chz.field(default=16, doc="numbers of z")
    beta: float = chz.field(default=1.0, doc="weight of the KL divergence (Higgins et al. 2017)")
    free_bits: float = chz.field(default=0.1, doc="minimum of each number's divergence in the loss, nats")
    warmup: int = chz.field(default=0, doc="steps over which beta rises from 0")

    @chz.validate
    def _possible(self) -> None:
        if self.latent < 1 or min(self.beta, self.free_bits, self.warmup) < 0:
            raise ValueError(f"latent must be 1 or more, and beta, free_bits and warmup must not be negative: {self}")

    def build(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> "TextVaeModule":
        return TextVaeModule(self, find_feature("TextVae.target", self.target, features, Text), settings, rngs)


class TextVaeModule(TextDecoderModule):
    """See `TextVae`."""

    def __init__(self, config: TextVae, text: Text, settings: Settings, rngs: nnx.Rngs):
        super().__init__(config, text, settings, rngs)
        rules, width, latent = settings.rules, settings.width, config.latent
        own, rate = config.own_settings(settings).width, settings.dropout
        self.reader = settings.stack(
            lambda rngs: Block(own, config.heads, config.block, rate=rate, rules=rules, rngs=rngs), 1, rngs
        )
        self.pool = AttentionPool(own, config.heads, rules=rules, rngs=rngs)
        # Both start as the standard Gaussian, and so without a divergence.
        self.prior, self.posterior = (
            Linear((inputs, 2 * latent), ("embed", None), bias=True, scale=0.0, rules=rules, rngs=rngs)
            for inputs in (width, own + width)
        )
        self.say = Linear((latent, width), (None, "embed"), rules=rules, rngs=rngs)
        self.beta, self.free_bits, self.warmup = config.beta, config.free_bits, config.warmup

    def prior_distribution(self, fused: Fused) -> Gaussian:
        """p(z | fused), Float[B Z]."""
        return Gaussian.of(self.prior(fused.pooled))

    def encode(self, ids: Int[Array, "B N"], present: Bool[Array, "B N"], fused: Fused) -> Gaussian:
        """q(z | text, fused), Float[B Z]."""
        x, _ = self.reader(self.embed_text(ids), present)
        return Gaussian.of(self.posterior(jnp.concatenate([self.pool(x, present), fused.pooled.astype(x.dtype)], -1)))

    def condition(self, z: Float[Array, "B Z"], fused: Fused) -> Fused:
        """The fused features with z as an additional token."""
        tokens = fused.tokens
        token = self.say(z.astype(tokens.values.dtype))[:, None]
        values = jnp.concatenate([tokens.values, token], 1)
        mask = jnp.concatenate([tokens.mask, jnp.ones_like(tokens.mask[:, :1])], 1)
        return dataclasses.replace(fused, tokens=Tokens(values, mask))

    def loss(
        self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None
    ) -> tuple[Average, Metrics]:
        present = self._present(batch)
        q, p = self.encode(batch.values[self.target], present, fused), self.prior_distribution(fused)
        draw_key, decode_key = (None, None) if key is None else jax.random.split(key)
        loss, metrics = super().loss(self.condition(q.sample(draw_key), fused), batch, decode_key, step)
        divergence, some = q.kl_divergence(p), present.any(1)
        warmup = 1.0 if step is None or not self.warmup else jnp.minimum(1.0, step / self.warmup)
        cost = Average.of(jnp.maximum(divergence, self.free_bits).sum(1), some).totals
        total = Average(loss.totals + warmup * self.beta * cost, loss.weights)
        return total, {**metrics, "tokens": loss, "kl": Average.of(divergence.sum(1), some)}

    def sample(self, fused: Fused, key: jax.Array | None, decoding: Decoding) -> Int[Array, "B N"]:
        draw_key, decode_key = (None, None) if key is None else jax.random.split(key)
        return super().sample(
            self.condition(self.prior_distribution(fused).sample(draw_key), fused), decode_key, decoding
        )
