"""Vision transformer."""

import functools

import chz
import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.encoders.base import Encoder, Intermediates, make_stack, require_feature
from mmjax.errors import UserError
from mmjax.layers.attention import Mask, check_heads
from mmjax.layers.block_options import BlockOptions
from mmjax.layers.linear import Linear, make_parameter
from mmjax.layers.norm import make_norm
from mmjax.layers.patches import patchify
from mmjax.layers.pool import Pool
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
    block: BlockOptions = chz.field(default=BlockOptions(), doc="how the blocks are built")
    mean: tuple[float, ...] = chz.field(default=(0.5,), doc="subtracted from pixels in [0, 1]; one, or by channel")
    deviation: tuple[float, ...] = chz.field(default=(1.0,), doc="what they are divided by then")
    patch_bias: bool = chz.field(default=True, doc="the projection of patches adds a bias")
    embed_norm: bool = chz.field(default=False, doc="a norm before the blocks, as in CLIP")
    class_token: bool = chz.field(
        default=False,
        doc="a learned token before the patches, for pool.kind=first; the encoder's tokens are without it",
    )
    registers: int = chz.field(default=0, doc="more learned tokens (Darcet et al. 2024)")
    pool: Pool | None = chz.field(default=None, doc="a summary of the tokens, for Contrast.pooling=encoder")

    @chz.validate
    def _valid(self) -> None:
        if min(self.deviation, default=0.0) <= 0:
            raise ValueError("deviation must be above 0")
        if self.registers < 0:
            raise ValueError("registers must not be negative")
        if self.pool is not None and self.pool.kind == "first" and not self.class_token:
            raise ValueError("pool.kind=first needs class_token=true")

    def packed_stride(self, feature: Feature) -> int | None:
        return 1 if isinstance(feature, Patches) else None

    def build(self, feature: Feature, settings: Settings, rngs: nnx.Rngs) -> "ViTEncoder | PatchesEncoder":
        image = require_feature(self, feature, Image, Patches)
        check_heads("ViT", self.heads, settings.width)
        for name, numbers in (("mean", self.mean), ("deviation", self.deviation)):
            if len(numbers) not in (1, image.channels):
                raise UserError(f"ViT.{name} must hold one number, or one for each of {image.channels} channels")
        if isinstance(image, Patches):
            if image.side != self.patch:
                raise UserError(f"ViT.patch={self.patch} must be the side of its input's patches, {image.side}")
            if self.class_token or self.registers or self.pool is not None:
                raise UserError("ViT reads patches in their own aspect ratio without class token, registers and pool")
            return PatchesEncoder(self, image, settings, rngs)
        if image.height % self.patch or image.width % self.patch:
            raise UserError(
                f"ViT.patch={self.patch} does not divide pictures of {image.height} x {image.width}; choose a divisor"
            )
        return ViTEncoder(self, image, settings, rngs)


class ViTEncoder(nnx.Module):
    """Patches -> linear projection plus learned 2-D position embeddings -> transformer -> norm."""

    def __init__(self, config: ViT, feature: Image, settings: Settings, rngs: nnx.Rngs):
        rules, width, block = settings.rules, settings.width, config.block
        grid = (feature.height // config.patch, feature.width // config.patch)
        shape, axes = (config.patch**2 * feature.channels, width), (None, "embed")
        self.embed = Linear(shape, axes, bias=config.patch_bias, rules=rules, rngs=rngs)
        self.position = make_position((*grid, width), rules=rules, rngs=rngs)
        self.stack = make_stack(block, config.depth, config.heads, settings, rngs)
        self.norm = make_norm(block, width, rules=rules, rngs=rngs)
        self.embed_norm = make_norm(block, width, rules=rules, rngs=rngs) if config.embed_norm else None
        init = jax.nn.initializers.normal(0.02)
        make = functools.partial(make_parameter, init, rules=rules, rngs=rngs)
        self.class_token = make((width,), (None,)) if config.class_token else None
        self.registers = make((config.registers, width), (None, None)) if config.registers else None
        self.extra = config.class_token + config.registers
        self.pool = None if config.pool is None else config.pool.build(config.heads, block, settings, rngs)
        self.mean, self.deviation = config.mean, config.deviation
        self.patch, self.dtype, self.rules = config.patch, settings.dtype, rules

    def __call__(
        self, values: Float[Array, "B H W C"], mask: Bool[Array, "B N"] | None, key: jax.Array | None
    ) -> tuple[Tokens, Intermediates]:
        patches = patchify(normalize(values, self.mean, self.deviation), self.patch, rules=self.rules)
        x = self.embed(patches.astype(self.dtype))
        x = x + rearrange(self.position[...], "h w d -> (h w) d").astype(self.dtype)
        x = self._add_tokens(x)
        x, layers = self.stack(x if self.embed_norm is None else self.embed_norm(x), None, key=key)
        x = self.norm(x)
        pooled = None if self.pool is None else self.pool(x, jnp.ones_like(x[..., 0], dtype=bool))
        x = x[:, self.extra :]
        layers = layers[:, :, self.extra :]
        return Tokens(x, jnp.ones_like(x[..., 0], dtype=bool), pooled=pooled), {"layers": layers}

    def _add_tokens(self, x: Float[Array, "B N D"]) -> Float[Array, "B M D"]:
        """The class token and the registers before the patches."""
        if not self.extra:
            return x
        spec, shape = self.rules.out_sharding("batch", None, None), (x.shape[0], self.extra, x.shape[2])
        tables = [] if self.class_token is None else [self.class_token[...][None]]
        tables += [] if self.registers is None else [self.registers[...]]
        extra = jnp.broadcast_to(jnp.concatenate(tables).astype(x.dtype), shape, out_sharding=spec)
        return jnp.concatenate([extra, x], 1)


def normalize(
    pixels: Float[Array, "... C"], mean: tuple[float, ...], deviation: tuple[float, ...]
) -> Float[Array, "... C"]:
    """(pixels - mean) / deviation, by channel."""
    return (pixels - jnp.array(mean)) / jnp.array(deviation)


class PatchesEncoder(nnx.Module):
    """Patches -> linear projection plus factorised position embeddings -> transformer -> norm.

    A patch's position is the sum of an embedding of its y and one of its x, both shares of the image's sides, each
    interpolated between `GRID` learned ones (NaViT, section 2.1: factorized, fractional).
    """

    def __init__(self, config: ViT, feature: Patches, settings: Settings, rngs: nnx.Rngs):
        rules, width, block = settings.rules, settings.width, config.block
        size = config.patch**2 * feature.channels
        self.embed = Linear((size, width), (None, "embed"), bias=config.patch_bias, rules=rules, rngs=rngs)
        self.y, self.x = (make_position((GRID, width), rules=rules, rngs=rngs) for _ in range(2))
        self.stack = make_stack(block, config.depth, config.heads, settings, rngs)
        self.norm = make_norm(block, width, rules=rules, rngs=rngs)
        self.embed_norm = make_norm(block, width, rules=rules, rngs=rngs) if config.embed_norm else None
        pixels = config.patch**2
        mean, deviation = (
            each * (pixels if len(each) == feature.channels else 1) for each in (config.mean, config.deviation)
        )
        self.mean, self.deviation = mean, deviation
        self.dtype, self.rules = settings.dtype, rules

    def __call__(
        self, values: Float[Array, "B N C"], mask: Mask, key: jax.Array | None
    ) -> tuple[Tokens, Intermediates]:
        x = self.embed(normalize(values[..., :-2], self.mean, self.deviation).astype(self.dtype))
        for table, share in ((self.y, values[..., -2]), (self.x, values[..., -1])):
            x = x + self._interpolate(table, share)
        x, layers = self.stack(x if self.embed_norm is None else self.embed_norm(x), mask, key=key)
        return Tokens(self.norm(x), mask > 0), {"layers": layers}

    def _interpolate(self, table: nnx.Param, share: Float[Array, "B N"]) -> Float[Array, "B N D"]:
        place = jnp.clip(share * GRID - 0.5, 0, GRID - 1)
        weights = jnp.maximum(1 - jnp.abs(place[..., None] - jnp.arange(GRID)), 0).astype(self.dtype)
        spec = self.rules.out_sharding("batch", None, None)
        return jnp.einsum("bng,gd->bnd", weights, table[...].astype(self.dtype), out_sharding=spec)
