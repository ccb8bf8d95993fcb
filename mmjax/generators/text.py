"""Text, token by token."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mmjax.generators.decoding import IMPOSSIBLE, Decoding, decode
from mmjax.layers.attention import check_heads
from mmjax.layers.decoder import Decoder, Memories
from mmjax.layers.linear import Embedding, Linear
from mmjax.layers.output import Output, find_feature
from mmjax.layers.position import make_position
from mmjax.layers.settings import Settings
from mmjax.types import PADDING, Average, Batch, Feature, Fused, Metrics, Text


@chz.chz
class TextDecoder(Output):
    """Writes a text by a causal transformer that attends to the fused tokens (Vaswani et al. 2017).

    The text itself is hidden from the fusion that it reads.
    """

    target: str = chz.field(doc="name of the text")
    depth: int = chz.field(default=2, doc="decoder blocks")
    heads: int = chz.field(default=4, doc="attention heads")
    decoding: Decoding = chz.field(default=Decoding(), doc="how predictions are written")

    @property
    def target_feature(self) -> str:
        return self.target

    def build(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> "TextWriter":
        check_heads("TextDecoder", self.heads, settings.width)
        return TextWriter(self, find_feature("TextDecoder.target", self.target, features, Text), settings, rngs)


class TextWriter(nnx.Module):
    """Fused tokens -> logits Float[B N V] of every token given those before it; padding begins a text.

    The loss is -log p(token | tokens before, fused) in float32, per token, the end included.
    """

    def __init__(self, config: TextDecoder, text: Text, settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        self.embed = Embedding(text.vocabulary, width, rules=rules, rngs=rngs)
        self.position = make_position((text.length, width), rules=rules, rngs=rngs)
        self.decoder = Decoder(config.depth, config.heads, settings, rngs)
        self.logits = Linear((width, text.vocabulary), ("embed", "vocab"), scale=0.1, rules=rules, rngs=rngs)
        self.target, self.decoding, self.length = config.target, config.decoding, text.length
        self.dtype, self.rules = settings.dtype, rules

    def __call__(self, ids: Int[Array, "B N"], fused: Fused, key: jax.Array | None) -> Float[Array, "B N V"]:
        """Logits in float32 of the token at every place, of which only the tokens before it are read."""
        before = jnp.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=PADDING)
        x = self.embed(before, self.dtype) + self.position[...].astype(self.dtype)
        return self.logits(self.decoder(x, fused.tokens, key)).astype(jnp.float32)

    def weight(self, batch: Batch) -> Float[Array, ""]:
        return self._there(batch).astype(jnp.float32).sum()

    def _there(self, batch: Batch) -> Array:
        return batch.mask[self.target] & batch.present[self.target][:, None]

    def loss(
        self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None
    ) -> tuple[Average, Metrics]:
        truth, there = batch.values[self.target], self._there(batch)
        logits = self(truth, fused, key)
        split = jax.typeof(logits).sharding.spec
        hot = jax.sharding.reshard(jax.nn.one_hot(truth, logits.shape[-1]), split)
        losses = jax.nn.logsumexp(logits, -1) - jnp.sum(logits * hot, -1)
        right = logits.argmax(-1) == truth
        loss = Average.of(losses, there)
        # As long as every token is right, a greedy decoder is given what it would have said itself.
        exact = (right | ~there).all(1).astype(jnp.float32)
        metrics: Metrics = {
            "accuracy": Average.of(right.astype(jnp.float32), there),
            "exact": Average.of(exact, there.any(1)),
        }
        return loss, metrics

    def predict(self, fused: Fused, key: jax.Array | None) -> dict[str, Array]:
        return {"ids": self.write(fused, key, self.decoding)}

    def write(self, fused: Fused, key: jax.Array | None, how: Decoding) -> Int[Array, "B N"]:
        """Token ids of one text an example, padding behind its end; see `decode`."""
        mask = fused.tokens.mask

        def step(last: Int[Array, "B"], place: Int[Array, ""], memories: Memories) -> tuple[Array, Memories]:
            return self.step(last, place, memories, mask)

        memories = self.decoder.begin(fused.tokens, self.length, self.dtype)
        return decode(step, memories, mask.shape[0], self.length, key, how, self.rules)

    def step(
        self, last: Int[Array, "B"], place: Int[Array, ""], memories: Memories, mask: Bool[Array, "B M"]
    ) -> tuple[Float[Array, "B V"], Memories]:
        """Logits in float32 of the token at one place, given the one before it and what is remembered of the rest."""
        position = jax.lax.dynamic_slice_in_dim(self.position[...], place, 1).astype(self.dtype)
        x, memories = self.decoder.step(self.embed(last[:, None], self.dtype) + position, place, memories, mask)
        logits = jax.sharding.reshard(self.logits(x)[:, 0].astype(jnp.float32), self.rules.spec("batch", None))
        return jnp.where(jnp.arange(logits.shape[-1]) == PADDING, IMPOSSIBLE, logits), memories
