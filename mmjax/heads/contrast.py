"""Contrastive alignment of two modalities."""

import math
from typing import Literal

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mmjax.errors import UserError
from mmjax.heads.contrastive_loss import contrastive_losses
from mmjax.layers.attention import AttentionPool, check_heads
from mmjax.layers.linear import Linear, make_parameter
from mmjax.layers.norm import unit_norm
from mmjax.layers.output import Output, OutputModule, find_feature
from mmjax.layers.settings import Settings
from mmjax.types import Average, Batch, Feature, Fused, Image, Metrics, Patches, Spectrogram, Text, Tokens

# Logarithm of the largest factor of similarities (Radford et al. 2021, section 2.5).
MAX_TEMPERATURE = math.log(100.0)


@chz.chz
class Contrast(Output):
    """Contrastive loss between the embeddings of two modalities over the global batch.

    "siglip" classifies every pair separately (Zhai et al. 2023); "infonce" is the softmax over the batch in both
    directions (van den Oord et al. 2018; Radford et al. 2021). The temperature is learned, up to a factor of 100.
    """

    first: str = chz.field(doc="the first modality")
    second: str = chz.field(doc="the second modality")
    kind: Literal["siglip", "infonce"] = chz.field(default="siglip", doc="the contrastive loss")
    pooling: Literal["attention", "encoder"] = chz.field(
        default="attention", doc="how tokens become an embedding: attention and a projection, or the encoders' own pool"
    )
    size: int = chz.field(default=128, doc="size of the embeddings that are projected")
    heads: int = chz.field(default=4, doc="attention heads of the pooling")

    @property
    def unimodal_inputs(self) -> tuple[str, ...]:
        return (self.first, self.second)

    def build(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> "ContrastHead":
        for key, name in (("Contrast.first", self.first), ("Contrast.second", self.second)):
            find_feature(key, name, features, Image, Patches, Text, Spectrogram)
        if self.pooling == "attention":
            check_heads("Contrast", self.heads, settings.width)
        texts = tuple(name for name in (self.first, self.second) if isinstance(features[name], Text))
        return ContrastHead(self, texts, settings, rngs)


class ContrastHead(OutputModule):
    """Each modality's own tokens -> attention pooling, or the encoder's -> unit embeddings Float[B E].

    Similarities are in float32.
    """

    def __init__(self, config: Contrast, texts: tuple[str, ...], settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        sides = range(2 if config.pooling == "attention" else 0)
        self.pools = nnx.List([AttentionPool(width, config.heads, rules=rules, rngs=rngs) for _ in sides])
        shape = (width, config.size)
        self.projections = nnx.List([Linear(shape, ("embed", None), rules=rules, rngs=rngs) for _ in sides])
        start, bias = (math.log(10.0), -10.0) if config.kind == "siglip" else (math.log(1 / 0.07), 0.0)
        constant = jax.nn.initializers.constant
        self.temperature = make_parameter(constant(start), (), (), maximum=MAX_TEMPERATURE, rules=rules, rngs=rngs)
        self.bias = make_parameter(constant(bias), (), (), rules=rules, rngs=rngs) if config.kind == "siglip" else None
        self.aligned_modalities, self.aligned_texts = (config.first, config.second), texts
        self.kind, self.rules = config.kind, rules

    def embed_modality(self, side: int, tokens: Tokens) -> Float[Array, "B E"]:
        """Unit embeddings of the first (0) or second (1) modality; zero where it is absent."""
        if self.pools:
            x = self.projections[side](self.pools[side](tokens.values, tokens.mask))
        elif tokens.pooled is not None:
            x = jnp.where(tokens.mask.any(1, keepdims=True), tokens.pooled, 0)
        else:
            name = self.aligned_modalities[side]
            raise UserError(f"Contrast.pooling=encoder needs model.encoders.{name}.pool, which is not set")
        return unit_norm(x.astype(jnp.float32))

    def _present(self, batch: Batch) -> Bool[Array, "B"]:
        return batch.present[self.aligned_modalities[0]] & batch.present[self.aligned_modalities[1]]

    def weight(self, batch: Batch) -> Float[Array, ""]:
        return self._present(batch).astype(jnp.float32).sum()

    def loss(
        self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None
    ) -> tuple[Average, Metrics]:
        present = self._present(batch)
        first, second = (
            self.embed_modality(side, fused.unimodal[name]) for side, name in enumerate(self.aligned_modalities)
        )
        losses, right = self.pairwise_losses(first, second, present)
        loss = Average.of(losses, present)
        return loss, {"batch_accuracy": Average.of(right.astype(jnp.float32), present)}

    def pairwise_losses(
        self,
        first: Float[Array, "B E"],
        second: Float[Array, "B E"],
        present: Bool[Array, "B"],
        rows: str | None = "batch",
    ) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
        """Every row's loss, and whether its own partner is the most similar one; see `contrastive_losses`."""
        temperature = self.temperature[...]
        # Also clipped here, in case it was loaded from elsewhere, but with a gradient, so that it can decrease.
        clipped = jax.lax.stop_gradient(jnp.minimum(temperature, MAX_TEMPERATURE))
        scale = jnp.exp(clipped + (temperature - jax.lax.stop_gradient(temperature)))
        bias = None if self.bias is None else self.bias[...]
        return contrastive_losses(first, second, present, scale, bias, self.rules, rows)

    def predict(self, fused: Fused, key: jax.Array | None) -> dict[str, Array]:
        return {
            name: self.embed_modality(side, fused.unimodal[name]) for side, name in enumerate(self.aligned_modalities)
        }
