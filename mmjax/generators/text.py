"""Text generation, token by token."""

import dataclasses
from collections.abc import Mapping

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mmjax.generators.decoding import IMPOSSIBLE, Decoding, decode
from mmjax.layers.attention import check_heads
from mmjax.layers.block_options import BlockOptions
from mmjax.layers.decoder import Decoder, DecoderBlock, DecoderCache
from mmjax.layers.linear import Embedding, Linear
from mmjax.layers.output import Output, OutputModule, find_feature
from mmjax.layers.position import make_position
from mmjax.layers.settings import Settings
from mmjax.sharding.rules import reshard
from mmjax.types import PADDING, Average, Batch, Feature, Fused, Metrics, Text, Tokens


@chz.chz
class TextDecoder(Output):
    """Causal transformer that attends to the fused tokens and generates text (Vaswani et al. 2017).

    The target text is hidden from the fusion.
    """

    target: str = chz.field(doc="name of the text")
    depth: int = chz.field(default=2, doc="decoder blocks")
    heads: int = chz.field(default=4, doc="attention heads")
    width: int | None = chz.field(default=None, doc="the decoder's own width; None: model.width")
    block: BlockOptions = chz.field(
        default=BlockOptions(), doc="how the blocks are built; with rope there are no learned positions"
    )
    gated: bool = chz.field(
        default=False,
        doc="scale the cross-attention by the tanh of a learned number, 0 at first (Alayrac et al. 2022, Flamingo)",
    )
    tied: bool = chz.field(default=False, doc="the token embeddings also give the logits (Press & Wolf 2017)")
    decoding: Decoding = chz.field(default=Decoding(), doc="how predictions are decoded")

    @chz.validate
    def _buildable(self) -> None:
        if self.block.post_norm or self.block.layer_scale is not None:
            raise ValueError("block.post_norm and block.layer_scale are for encoders; leave them out of a decoder")

    @property
    def target_feature(self) -> str:
        return self.target

    @property
    def is_autoregressive(self) -> bool:
        return True

    @property
    def can_judge(self) -> bool:
        return True

    def own_settings(self, settings: Settings) -> Settings:
        """The settings with the decoder's own width. Raises UserError unless its heads divide that."""
        name = type(self).__name__
        if self.width is None:
            check_heads(name, self.heads, settings.width)
            return settings
        check_heads(name, self.heads, self.width, f"{name}.width")
        return dataclasses.replace(settings, width=self.width)

    def build(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> "TextDecoderModule":
        return TextDecoderModule(self, find_feature("TextDecoder.target", self.target, features, Text), settings, rngs)


class TextDecoderModule(OutputModule):
    """Fused tokens -> next-token logits Float[B N V]; padding starts a text.

    The loss is -log p(token | previous tokens, fused) in float32, per token, the end included.
    """

    writes_text = True
    explainable = True

    def __init__(self, config: TextDecoder, text: Text, settings: Settings, rngs: nnx.Rngs):
        own, block, rules = config.own_settings(settings), config.block, settings.rules
        self.embed = Embedding(text.vocabulary, own.width, rules=rules, rngs=rngs)
        shape = (text.length, own.width)
        self.position = make_position(shape, rules=rules, rngs=rngs) if block.rope is None else None
        self.decoder = Decoder(
            config.depth, config.heads, own, rngs, options=block, context_width=settings.width, gated=config.gated
        )
        shape, axes = (own.width, text.vocabulary), ("embed", "vocab")
        self.logits = None if config.tied else Linear(shape, axes, scale=0.1, rules=rules, rngs=rngs)
        self.target = self.truth_feature = config.target
        self.decoding, self.length = config.decoding, text.length
        self.dtype, self.rules = settings.dtype, rules

    def __call__(self, ids: Int[Array, "B N"], fused: Fused, key: jax.Array | None) -> Float[Array, "B N V"]:
        """Teacher-forced logits in float32; each position reads only earlier tokens."""
        return self._logits(self.decoder(self._embed_before(ids), fused.tokens, key))

    def embed_text(self, ids: Int[Array, "B N"]) -> Float[Array, "B N D"]:
        """The embeddings of a text's tokens, with their learned positions if there are any."""
        x = self.embed(ids, self.dtype)
        return x if self.position is None else x + self.position[...].astype(self.dtype)

    def _embed_before(self, ids: Int[Array, "B N"]) -> Float[Array, "B N D"]:
        """The embedding of the token before each."""
        return self.embed_text(jnp.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=PADDING))

    def _logits(self, x: Float[Array, "B N D"]) -> Float[Array, "B N V"]:
        return (self.embed.logits(x) if self.logits is None else self.logits(x)).astype(jnp.float32)

    def weight(self, batch: Batch) -> Float[Array, ""]:
        return self._present(batch).astype(jnp.float32).sum()

    def _present(self, batch: Batch) -> Array:
        return batch.mask[self.target] & batch.present[self.target][:, None]

    def loss(
        self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None
    ) -> tuple[Average, Metrics]:
        truth, present = batch.values[self.target], self._present(batch)
        logits = self(truth, fused, key)
        split = jax.typeof(logits).sharding.spec
        hot = reshard(jax.nn.one_hot(truth, logits.shape[-1]), split)
        losses = jax.nn.logsumexp(logits, -1) - jnp.sum(logits * hot, -1)
        right = logits.argmax(-1) == truth
        loss = Average.of(losses, present)
        # As long as every token is right, teacher forcing equals greedy decoding.
        exact = (right | ~present).all(1).astype(jnp.float32)
        metrics: Metrics = {
            "accuracy": Average.of(right.astype(jnp.float32), present),
            "exact": Average.of(exact, present.any(1)),
        }
        return loss, metrics

    def predict(self, fused: Fused, key: jax.Array | None) -> dict[str, Array]:
        return {"ids": self.sample(fused, key, self.decoding)}

    def answer(self, predictions: Mapping[str, Array]) -> Int[Array, "B N"]:
        """The text written."""
        return predictions["ids"]

    def answer_logits(self, answer: Int[Array, "B N"], fused: Fused) -> Float[Array, "B N V"]:
        """The logits of every token, given those of the text before it."""
        return self(answer, fused, None)

    def token_weights(
        self, answer: Int[Array, "B P"], explained: Bool[Array, "B P"], tokens: Tokens
    ) -> Float[Array, "B T"]:
        """By cross-attention at the places explained, the mean of all blocks."""
        context = self.decoder.context_norm(tokens.values).astype(self.dtype)

        def step(block: DecoderBlock, x: Array, _) -> tuple[Array, Array]:
            query = block.seen_norm(x + block.own(block.own_norm(x), causal=True))
            return block(x, context, tokens.mask, None), block.seen.weights(query, context, tokens.mask)

        _, weights = self.decoder.stack.scan(step, self._embed_before(answer))
        share = explained / jnp.maximum(explained.sum(1, keepdims=True), 1)
        return jnp.einsum("lbpt,bp->bt", weights, share) / len(weights)

    def sample(self, fused: Fused, key: jax.Array | None, decoding: Decoding) -> Int[Array, "B N"]:
        """Token ids of one text per example, padded after its end; see `decode`."""
        mask = fused.tokens.mask

        def step(last: Int[Array, "B"], position: Int[Array, ""], cache: DecoderCache) -> tuple[Array, DecoderCache]:
            return self.step(last, position, cache, mask)

        cache = self.decoder.init_cache(fused.tokens, self.length, self.dtype)
        return decode(step, cache, mask.shape[0], self.length, key, decoding, self.rules)

    def step(
        self, last: Int[Array, "B"], position: Int[Array, ""], cache: DecoderCache, mask: Bool[Array, "B M"]
    ) -> tuple[Float[Array, "B V"], DecoderCache]:
        """Logits in float32 at one position, from the previous token and the cache."""
        x = self.embed(last[:, None], self.dtype)
        if self.position is not None:
            x = x + jax.lax.dynamic_slice_in_dim(self.position[...], position, 1).astype(self.dtype)
        x, cache = self.decoder.step(x, position, cache, mask)
        logits = reshard(self._logits(x)[:, 0], self.rules.spec("batch", None))
        return jnp.where(jnp.arange(logits.shape[-1]) == PADDING, IMPOSSIBLE, logits), cache
