"""Attention rollout: how much of what an output reads comes from which token, through attention and residuals."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.fusion.base import Masks, StreamFusion, Streams, add_modality_embedding, concat_streams
from mmjax.fusion.cross_attention import Exchange
from mmjax.fusion.multiway import MultiwayBlock
from mmjax.fusion.single_stream import JointBlock
from mmjax.generators.text import TextWriter
from mmjax.layers.attention import Block
from mmjax.layers.decoder import DecoderBlock
from mmjax.model import Multimodal
from mmjax.types import PADDING, Batch, Tokens


def rollout(
    model: Multimodal, output: str, said: Int[Array, "B P"], asked: Bool[Array, "B P"], batch: Batch
) -> dict[str, Float[Array, "B _"]] | None:
    """The share of every encoder's tokens in what an output reads, which add up to 1 (Abnar & Zuidema 2020).

    A token passes a layer as itself and as what attention adds to it in the ratio 1 : 1, or 1 : |tanh a| where that is
    gated; then the output reads the tokens by the weights of the pooling, a writer of texts by those of its decoder at
    the places asked for, the mean of its blocks. Heads are averaged. Through cross-attention, tokens of one modality so
    come to consist of others' (after Chefer et al. 2021). None where the fusion is not made of blocks of attention
    between whole streams.
    """
    fusion = model.fusion
    if not isinstance(fusion, StreamFusion):
        return None
    streams, _ = model.encode(batch, None)
    masks = {
        name: jnp.zeros_like(streams[name].mask) if name in model.hidden_modalities[output] else streams[name].mask
        for name in fusion.modalities
    }

    def step(block: Exchange | JointBlock | MultiwayBlock, values: Streams, _) -> tuple[Streams, Array]:
        return block(values, masks, None), _mixture(block, values, masks)

    values, mixtures = fusion.stack.thread(step, add_modality_embedding(streams, fusion.kind, fusion.modalities))
    tokens, _ = fusion.finish(values, masks)
    head = model.outputs[output]
    if isinstance(head, TextWriter):
        share = _read(head, said, asked, tokens)
    else:
        share = fusion.pool.weights(tokens.values, tokens.mask)
    for mixture in mixtures[::-1]:
        share = jnp.einsum("bt,bts->bs", share, mixture)
    shares, start = {}, 0
    for name in fusion.modalities:
        end = start + masks[name].shape[1]
        shares[name], start = share[:, start:end], end
    return shares


def _mixture(block: Exchange | JointBlock | MultiwayBlock, values: Streams, masks: Masks) -> Float[Array, "B T T"]:
    """The share of every token, of all modalities one after the other, in what a block makes of each of them."""
    x, mask = concat_streams(values, block.modalities), concat_streams(masks, block.modalities)
    if isinstance(block, JointBlock):
        return _residual(_own(block.block, x, mask))
    if isinstance(block, MultiwayBlock):
        return _residual(block.attention.weights(block.norm(x), mask=mask))
    crossed, owned, start = [], [], 0
    for name in block.modalities:
        x, behind = values[name], mask.shape[1] - start - values[name].shape[1]
        if name in block.others:
            own = _own(block.others[name], x, masks[name])
            across = jnp.zeros_like(own)[..., :0]
            across = jnp.pad(across, ((0, 0), (0, 0), (0, start + behind)))
        else:
            reader, rest = block.readers[name], tuple(other for other in block.modalities if other != name)
            context, seen = concat_streams(values, rest), concat_streams(masks, rest)
            across = reader.cross.weights(reader.norm(x), reader.context_norm(context), seen)
            if reader.gate is not None:
                across = across * abs(jnp.tanh(reader.gate[...]))
            own = _own(reader.block, x + reader.cross_attend(x, context, seen), masks[name])
        crossed.append(jnp.concatenate([across[..., :start], jnp.zeros_like(own), across[..., start:]], -1))
        owned.append(jnp.pad(own, ((0, 0), (0, 0), (start, behind))))
        start += x.shape[1]
    first, then = (_residual(jnp.concatenate(rows, 1)) for rows in (crossed, owned))
    return jnp.einsum("bij,bjk->bik", then, first)


def _own(block: Block, x: Float[Array, "B N D"], mask: Bool[Array, "B N"]) -> Float[Array, "B N N"]:
    return block.attention.weights(block.attention_norm(x), mask=mask)


def _residual(weights: Float[Array, "B T T"]) -> Float[Array, "B T T"]:
    """What comes past attention and what comes through it, as shares."""
    return (jnp.eye(weights.shape[1]) + weights) / (1 + weights.sum(-1, keepdims=True))


def _read(head: TextWriter, said: Int[Array, "B P"], asked: Bool[Array, "B P"], tokens: Tokens) -> Float[Array, "B T"]:
    """How much a writer reads of each token where it writes the places asked for."""
    before = jnp.pad(said[:, :-1], ((0, 0), (1, 0)), constant_values=PADDING)
    context = head.decoder.context_norm(tokens.values).astype(head.dtype)

    def step(block: DecoderBlock, x: Array, _) -> tuple[Array, Array]:
        query = block.seen_norm(x + block.own(block.own_norm(x), causal=True))
        return block(x, context, tokens.mask, None), block.seen.weights(query, context, tokens.mask)

    x = head.embed(before, head.dtype) + head.position[...].astype(head.dtype)
    _, weights = head.decoder.stack.thread(step, x)
    return jnp.einsum("lbpt,bp->bt", weights, asked / jnp.maximum(asked.sum(1, keepdims=True), 1)) / len(weights)
