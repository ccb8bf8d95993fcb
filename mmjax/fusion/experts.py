"""Fusion by a transformer over all tokens with a sparse mixture of experts."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.fusion.base import (
    Fusion,
    Intermediates,
    Masks,
    StreamFusion,
    Streams,
    add_modality_embedding,
    concat_streams,
    split_streams,
)
from mmjax.layers import mlp
from mmjax.layers.attention import Attention, check_heads
from mmjax.layers.linear import gather_parameter, make_parameter
from mmjax.layers.norm import RMSNorm, dropout
from mmjax.layers.settings import Settings
from mmjax.types import Tokens


@chz.chz
class Experts(Fusion):
    """Transformer over all tokens with a sparse mixture of experts in place of the MLP.

    x <- x + attention(norm(x)), then x <- x + sum over e of p_e(x) f_e(norm(x)) over a few experts. p = softmax(R_m
    norm(x)) with a router R_m for every modality m, of which a token keeps its `top_k` largest entries (Shazeer et al.
    2017; with tokens of several modalities Mustafa et al. 2022, LIMoE). The load-balancing loss is E sum over e of F_e
    P_e (Fedus et al. 2022): F_e the share of tokens whose largest entry is e, P_e the mean of p_e, each modality
    counting equally however many tokens it has.
    """

    experts: int = chz.field(default=4, doc="experts E; a mesh axis `expert` must divide them")
    top_k: int = chz.field(default=2, doc="experts per token")
    capacity_factor: float = chz.field(
        default=1.5, doc="capacity of an expert as a multiple of its even share of tokens"
    )
    balance_weight: float = chz.field(default=0.01, doc="weight of the load-balancing loss")
    depth: int = chz.field(default=2, doc="transformer blocks")
    heads: int = chz.field(default=4, doc="attention heads")

    @chz.validate
    def _valid(self) -> None:
        if not 1 <= self.top_k <= self.experts:
            raise ValueError(f"top_k={self.top_k} must be 1 or more and at most experts={self.experts}")
        if self.capacity_factor <= 0 or self.balance_weight < 0:
            raise ValueError("capacity_factor must be positive and balance_weight must not be negative")

    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> "ExpertsFusion":
        check_heads("model.fusion", self.heads, settings.width)

        def make(rngs: nnx.Rngs) -> ExpertBlock:
            return ExpertBlock(self, modalities, settings, rngs)

        return ExpertsFusion(make, self.depth, self.heads, modalities, settings, rngs, balance=self.balance_weight)


class ExpertBlock(nnx.Module):
    """Attention over all tokens, then experts; also carries the sum of the balancing losses."""

    def __init__(self, config: Experts, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.attention = Attention(width, config.heads, rules=rules, rngs=rngs)
        self.expert_norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.experts = mlp.Experts(config.experts, width, 4 * width, rules=rules, rngs=rngs)
        init, shape = jax.nn.initializers.normal(width**-0.5), (len(modalities), width, config.experts)
        self.routers = make_parameter(init, shape, (None, "embed", None), matrix=(1, 1), rules=rules, rngs=rngs)
        self.config, self.modalities, self.rate, self.rules = config, modalities, settings.dropout, rules

    def __call__(
        self, carry: tuple[Streams, Float[Array, ""]], masks: Masks, key: jax.Array | None
    ) -> tuple[Streams, Float[Array, ""]]:
        streams, losses = carry
        keys = (None, None) if key is None else jax.random.split(key)
        x, mask = concat_streams(streams, self.modalities), concat_streams(masks, self.modalities)
        x = x + dropout(self.attention(self.norm(x), mask=mask), self.rate, keys[0])
        normed = self.expert_norm(x)
        probabilities = self.route(split_streams(normed, streams, self.modalities), masks)
        gates = concat_streams(probabilities, self.modalities)
        kept = jax.lax.top_k(jax.lax.stop_gradient(gates), self.config.top_k)[0][..., -1:]
        gates = jnp.where(gates >= kept, gates, 0)
        config = self.config
        capacity = mlp.expert_capacity(x.shape[1], config.experts, config.top_k, config.capacity_factor)
        x = x + dropout(self.experts(normed, gates, capacity), self.rate, keys[1])
        return split_streams(x, streams, self.modalities), losses + balance_loss(probabilities, masks)

    def route(self, streams: Streams, masks: Masks) -> dict[str, Float[Array, "B _ E"]]:
        """The router's probabilities for each token, in float32; 0 where the token is masked."""
        routers = gather_parameter(self.routers, (None, "embed", None), jnp.dtype("float32"), self.rules)
        scores = {
            name: jnp.einsum("bnd,de->bne", streams[name].astype(jnp.float32), routers[index])
            for index, name in enumerate(self.modalities)
        }
        return {name: jnp.where(masks[name][..., None], jax.nn.softmax(score), 0) for name, score in scores.items()}


def balance_loss(probabilities: dict[str, Float[Array, "B _ E"]], masks: dict[str, Bool[Array, "B _"]]) -> Array:
    """E sum over e of F_e P_e, 1 where the load is even; see `Experts`."""
    wanted = mean = present = jnp.zeros(())
    for name, probability in probabilities.items():
        mask = masks[name].astype(jnp.float32)
        count = jnp.maximum(mask.sum(), 1)
        first = jax.nn.one_hot(probability.argmax(-1), probability.shape[-1]) * mask[..., None]
        wanted, mean = wanted + first.sum((0, 1)) / count, mean + probability.sum((0, 1)) / count
        present = present + mask.any()
    return probability.shape[-1] * jnp.sum(wanted * mean) / jnp.maximum(present, 1) ** 2


class ExpertsFusion(StreamFusion):
    """Mixture-of-experts fusion, built from `Experts`."""

    def __init__(self, *arguments, balance: float):
        super().__init__(*arguments)
        self.balance = balance

    def __call__(
        self, streams: dict[str, Tokens], key: jax.Array | None
    ) -> tuple[Tokens, Float[Array, "B D"], Intermediates]:
        masks = {name: streams[name].mask for name in self.modalities}
        start = add_modality_embedding(streams, self.kind, self.modalities), jnp.zeros((), jnp.float32)
        (values, losses), layers = self.stack(start, masks, key=key)
        balance = self.balance * losses / self.stack.depth
        return *self.norm_and_pool(values, masks), {"layers": layers[0], "losses": {"balance": balance}}
