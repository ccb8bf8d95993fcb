"""Fusion by feature-wise linear modulation (FiLM)."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.fusion.base import Fusion, Intermediates, PooledFusion, check_target
from mmjax.layers.linear import Linear, make_parameter
from mmjax.layers.mlp import MLP
from mmjax.layers.norm import RMSNorm, dropout
from mmjax.layers.settings import Settings


@chz.chz
class Film(Fusion):
    """h <- h + f(norm(h) * (1 + gamma) + beta), `depth` times, from the mean token h of one modality.

    gamma and beta are linear in the mean tokens of the others, f is an MLP (Perez et al. 2018). A learned vector
    replaces a missing modality.
    """

    target: str | None = chz.field(default=None, doc="the modulated modality; None: the first by name")
    depth: int = chz.field(default=2, doc="modulated blocks")

    @chz.validate
    def _deep(self) -> None:
        if not 1 <= self.depth <= 100:  # blocks are compiled one by one
            raise ValueError("depth must lie between 1 and 100")

    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> "FilmFusion":
        check_target(self.target, modalities)
        return FilmFusion(self, modalities, settings, rngs)


class FilmBlock(nnx.Module):
    """h + f(norm(h) * (1 + gamma) + beta)."""

    def __init__(self, others: int, settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        axes = (None, "embed", None, None)
        self.modulate = Linear((others, width, 2, width), axes, inputs=2, bias=True, rules=rules, rngs=rngs)
        self.mlp = MLP(width, 4 * width, rules=rules, rngs=rngs)
        self.rate = settings.dropout

    def __call__(
        self, h: Float[Array, "B 1 D"], others: Float[Array, "B O D"], key: jax.Array | None
    ) -> Float[Array, "B 1 D"]:
        modulation = self.modulate(others)
        gamma, beta = modulation[:, :1], modulation[:, 1:]
        return h + dropout(self.mlp(self.norm(h) * (1 + gamma) + beta), self.rate, key)


class FilmFusion(PooledFusion):
    """See `Film`. With a single modality nothing is modulated: gamma and beta are learned constants."""

    def __init__(self, config: Film, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        init, shape = jax.nn.initializers.normal(0.02), (len(modalities), width)
        self.missing = make_parameter(init, shape, (None, None), rules=rules, rngs=rngs)
        self.target = 0 if config.target is None else modalities.index(config.target)
        others = len(modalities) - 1
        self.blocks = nnx.List([FilmBlock(max(others, 1), settings, rngs) for _ in range(config.depth)])
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.modalities = modalities

    def combine(
        self, means: Float[Array, "B M D"], present: Bool[Array, "B M"], key: jax.Array | None
    ) -> tuple[Float[Array, "B D"], Intermediates]:
        known = jnp.where(present[..., None], means, self.missing[...].astype(means.dtype))
        places = [index for index in range(len(self.modalities)) if index != self.target]
        h = known[:, self.target][:, None]
        others = jnp.stack([known[:, index] for index in places], 1) if places else jnp.zeros_like(h)
        keys = [None] * len(self.blocks) if key is None else jax.random.split(key, len(self.blocks))
        for block, block_key in zip(self.blocks, keys, strict=True):
            h = block(h, others, block_key)
        return self.norm(h)[:, 0], {}
