"""Contrastive alignment of two modalities."""

import math
from typing import Literal

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mmjax.heads.pairs import pair_losses
from mmjax.layers.attention import AttentionPool, check_heads
from mmjax.layers.linear import Linear, make_parameter
from mmjax.layers.norm import unit_norm
from mmjax.layers.output import Output, find_feature
from mmjax.layers.settings import Settings
from mmjax.types import Average, Batch, Feature, Fused, Image, Metrics, Spectrogram, Text, Tokens

# Logarithm of the largest factor of similarities (Radford et al. 2021, section 2.5).
MAX_TEMPERATURE = math.log(100.0)


@chz.chz
class Contrast(Output):
    """Pulls the embeddings of an example's two modalities together and apart from the rest of the global batch.

    "siglip" judges every pair by itself (Zhai et al. 2023); "infonce" picks the partner among all by softmax, both ways
    (van den Oord et al. 2018; Radford et al. 2021). The temperature is learned, up to a factor of 100.
    """

    first: str = chz.field(doc="one modality")
    second: str = chz.field(doc="the other")
    kind: Literal["siglip", "infonce"] = chz.field(default="siglip", doc="the loss")
    size: int = chz.field(default=128, doc="numbers in an embedding")
    heads: int = chz.field(default=4, doc="attention heads of the pooling")

    @property
    def unimodal(self) -> tuple[str, ...]:
        return (self.first, self.second)

    def build(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> "ContrastHead":
        for key, name in (("Contrast.first", self.first), ("Contrast.second", self.second)):
            find_feature(key, name, features, Image, Text, Spectrogram)
        check_heads("Contrast", self.heads, settings.width)
        texts = tuple(name for name in (self.first, self.second) if isinstance(features[name], Text))
        return ContrastHead(self, texts, settings, rngs)


class ContrastHead(nnx.Module):
    """Each modality's own tokens -> attention pooling -> unit embeddings Float[B E]; similarities in float32.

    `texts` are those of the two modalities that are texts.
    """

    def __init__(self, config: Contrast, texts: tuple[str, ...], settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        self.pools = nnx.List([AttentionPool(width, config.heads, rules=rules, rngs=rngs) for _ in range(2)])
        shape = (width, config.size)
        self.projections = nnx.List([Linear(shape, ("embed", None), rules=rules, rngs=rngs) for _ in range(2)])
        start, bias = (math.log(10.0), -10.0) if config.kind == "siglip" else (math.log(1 / 0.07), 0.0)
        constant = jax.nn.initializers.constant
        self.temperature = make_parameter(constant(start), (), (), maximum=MAX_TEMPERATURE, rules=rules, rngs=rngs)
        self.bias = make_parameter(constant(bias), (), (), rules=rules, rngs=rngs) if config.kind == "siglip" else None
        self.names, self.texts, self.kind, self.rules = (config.first, config.second), texts, config.kind, rules

    def embed(self, side: int, tokens: Tokens) -> Float[Array, "B E"]:
        """Unit embeddings of the first (0) or second (1) modality; zero where it is absent."""
        x = self.projections[side](self.pools[side](tokens.values, tokens.mask))
        return unit_norm(x.astype(jnp.float32))

    def _there(self, batch: Batch) -> Bool[Array, "B"]:
        return batch.present[self.names[0]] & batch.present[self.names[1]]

    def weight(self, batch: Batch) -> Float[Array, ""]:
        return self._there(batch).astype(jnp.float32).sum()

    def loss(
        self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None
    ) -> tuple[Average, Metrics]:
        there = self._there(batch)
        first, second = (self.embed(side, fused.unimodal[name]) for side, name in enumerate(self.names))
        losses, right = self.compare(first, second, there)
        loss = Average.of(losses, there)
        return loss, {"batch_accuracy": Average.of(right.astype(jnp.float32), there)}

    def compare(
        self,
        first: Float[Array, "B E"],
        second: Float[Array, "B E"],
        there: Bool[Array, "B"],
        rows: str | None = "batch",
    ) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
        """Every row's loss, and whether it is most similar to its own partner; see `pair_losses`."""
        temperature = self.temperature[...]
        # Clipped too in case it comes from elsewhere, but with a gradient, so that it can come down.
        clipped = jax.lax.stop_gradient(jnp.minimum(temperature, MAX_TEMPERATURE))
        scale = jnp.exp(clipped + (temperature - jax.lax.stop_gradient(temperature)))
        bias = None if self.bias is None else self.bias[...]
        return pair_losses(first, second, there, scale, bias, self.rules, rows)

    def predict(self, fused: Fused, key: jax.Array | None) -> dict[str, Array]:
        return {name: self.embed(side, fused.unimodal[name]) for side, name in enumerate(self.names)}
