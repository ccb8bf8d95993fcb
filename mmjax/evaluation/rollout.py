"""Attention rollout: how much of what an output reads comes from which token."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.fusion.base import StreamBlock, StreamFusion, Streams, add_modality_embedding
from mmjax.model import Multimodal
from mmjax.types import Batch


def rollout(
    model: Multimodal, output: str, answer: Int[Array, "B P"], explained: Bool[Array, "B P"], batch: Batch
) -> dict[str, Float[Array, "B _"]] | None:
    """The share of every encoder's tokens in what an output reads; their sum is 1 (Abnar & Zuidema 2020).

    A token passes a layer as itself and as what attention adds to it, see `StreamBlock.mixture`; then the output reads
    the tokens by the weights of the pooling, or by its own at the places explained. Heads are averaged. Through
    cross-attention, tokens of one modality so come to consist of others' (after Chefer et al. 2021). None where the
    fusion is not made of blocks of attention between whole streams.
    """
    fusion = model.fusion
    if not isinstance(fusion, StreamFusion):
        return None
    streams, _ = model.encode(batch, None)
    masks = {
        name: jnp.zeros_like(streams[name].mask) if name in model.hidden_modalities[output] else streams[name].mask
        for name in fusion.modalities
    }

    def step(block: StreamBlock, values: Streams, _) -> tuple[Streams, Array]:
        return block(values, masks, None), block.mixture(values, masks)

    values, mixtures = fusion.stack.scan(step, add_modality_embedding(streams, fusion.kind, fusion.modalities))
    tokens, _ = fusion.norm_and_pool(values, masks)
    share = model.outputs[output].token_weights(answer, explained, tokens)
    if share is None:
        share = fusion.pool.weights(tokens.values, tokens.mask)
    for mixture in mixtures[::-1]:
        share = jnp.einsum("bt,bts->bs", share, mixture)
    shares, start = {}, 0
    for name in fusion.modalities:
        end = start + masks[name].shape[1]
        shares[name], start = share[:, start:end], end
    return shares
