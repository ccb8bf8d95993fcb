"""Vision transformer."""

import chz
import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.encoders.base import Encoder, Intermediates, require_feature
from mmjax.errors import UserError
from mmjax.layers.attention import Block, Mask, check_heads
from mmjax.layers.linear import Linear
from mmjax.layers.norm import RMSNorm
from mmjax.layers.patches import patchify
from mmjax.layers.position import make_position
from mmjax.layers.settings import Settings
from mmjax.types import Feature, Image, Patches, Tokens

GRID = 16  # learned positions along each side of an image in its own aspect ratio


@chz.chz
class ViT(Encoder):
    """Vision transformer over square patches (Dosovitskiy et al. 2021).

    Of images of one size, or of patches of images in their own aspect ratio (NaViT, Dehghani et al. 2023).
    """

    patch: int = chz.field(default=8, doc="side of a patch in pixels")
    depth: int = chz.field(default=4, doc="transformer blocks")
    heads: int = chz.field(default=4, doc="attention heads")

    def packed_stride(self, feature: Feature) -> int | None:
        return 1 if isinstance(feature, Patches) else None

    def build(self, feature: Feature, settings: Settings, rngs: nnx.Rngs) -> "ViTEncoder | PatchesEncoder":
        image = require_feature(self, feature, Image, Patches)
        check_heads("ViT", self.heads, settings.width)
        if isinstance(image, Patches):
            if image.side != self.patch:
                raise UserError(f"ViT.patch={self.patch} must be the side of its input's patches, {image.side}")
            return PatchesEncoder(self, image, settings, rngs)
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


class PatchesEncoder(nnx.Module):
    """Patches -> linear projection plus factorised position embeddings -> transformer -> norm.

    A patch's position is the sum of an embedding of its y and one of its x, both shares of the image's sides, each
    interpolated between `GRID` learned ones (NaViT, section 2.1: factorized, fractional).
    """

    def __init__(self, config: ViT, feature: Patches, settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        size = config.patch**2 * feature.channels
        self.embed = Linear((size, width), (None, "embed"), bias=True, rules=rules, rngs=rngs)
        self.y, self.x = (make_position((GRID, width), rules=rules, rngs=rngs) for _ in range(2))
        self.stack = settings.stack(
            lambda rngs: Block(width, config.heads, rate=settings.dropout, rules=rules, rngs=rngs), config.depth, rngs
        )
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.dtype, self.rules = settings.dtype, rules

    def __call__(
        self, values: Float[Array, "B N C"], mask: Mask, key: jax.Array | None
    ) -> tuple[Tokens, Intermediates]:
        x = self.embed((values[..., :-2] - 0.5).astype(self.dtype))
        for table, share in ((self.y, values[..., -2]), (self.x, values[..., -1])):
            x = x + self._interpolate(table, share)
        x, layers = self.stack(x, mask, key=key)
        return Tokens(self.norm(x), mask > 0), {"layers": layers}

    def _interpolate(self, table: nnx.Param, share: Float[Array, "B N"]) -> Float[Array, "B N D"]:
        place = jnp.clip(share * GRID - 0.5, 0, GRID - 1)
        weights = jnp.maximum(1 - jnp.abs(place[..., None] - jnp.arange(GRID)), 0).astype(self.dtype)
        spec = self.rules.out_sharding("batch", None, None)
        return jnp.einsum("bng,gd->bnd", weights, table[...].astype(self.dtype), out_sharding=spec)
