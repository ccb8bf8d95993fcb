"""Vision transformer."""

import chz
import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.encoders.base import Encoder, Intermediates, require_feature
from mmjax.errors import UserError
from mmjax.layers.attention import Block, check_heads
from mmjax.layers.linear import Linear
from mmjax.layers.norm import RMSNorm
from mmjax.layers.patches import patchify
from mmjax.layers.position import make_position
from mmjax.layers.settings import Settings
from mmjax.types import Feature, Image, Tokens


@chz.chz
class ViT(Encoder):
    """Vision transformer over square patches (Dosovitskiy et al. 2021)."""

    patch: int = chz.field(default=8, doc="side of a patch in pixels")
    depth: int = chz.field(default=4, doc="transformer blocks")
    heads: int = chz.field(default=4, doc="attention heads")

    def build(self, feature: Feature, settings: Settings, rngs: nnx.Rngs) -> "ViTEncoder":
        image = require_feature(self, feature, Image)
        check_heads("ViT", self.heads, settings.width)
        if image.height % self.patch or image.width % self.patch:
            raise UserError(
                f"ViT.patch={self.patch} does not divide pictures of {image.height} x {image.width}; choose a divisor"
            )
        return ViTEncoder(self, image, settings, rngs)


class ViTEncoder(nnx.Module):
    """Patches -> linear projection plus learned 2-D position embeddings -> transformer -> norm."""

    def __init__(self, config: ViT, feature: Image, settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        grid = (feature.height // config.patch, feature.width // config.patch)
        self.embed = Linear(
            (config.patch**2 * feature.channels, width), (None, "embed"), bias=True, rules=rules, rngs=rngs
        )
        self.position = make_position((*grid, width), rules=rules, rngs=rngs)
        self.stack = settings.stack(
            lambda rngs: Block(width, config.heads, rate=settings.dropout, rules=rules, rngs=rngs), config.depth, rngs
        )
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.patch, self.dtype, self.rules = config.patch, settings.dtype, rules

    def __call__(
        self, values: Float[Array, "B H W C"], mask: Bool[Array, "B N"] | None, key: jax.Array | None
    ) -> tuple[Tokens, Intermediates]:
        patches = patchify(values, self.patch, rules=self.rules)
        x = self.embed((patches - 0.5).astype(self.dtype))
        x = x + rearrange(self.position[...], "h w d -> (h w) d").astype(self.dtype)
        x, layers = self.stack(x, None, key=key)
        x = self.norm(x)
        return Tokens(x, jnp.ones_like(x[..., 0], dtype=bool)), {"layers": layers}
