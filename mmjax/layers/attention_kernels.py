"""softmax(Q K^T / sqrt(K)) V by the fastest kernel for the device and shapes; `attend` selects it."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.layers.packed import has_segments
from mmjax.sharding.rules import shard_map

# What a kernel maps queries, keys, values, what is seen of them, and whether the later is hidden, to.
Kernel = Callable[[Array, Array, Array, Array | None, bool], Array]
# Rows and columns of scores that splash attention works through at a time, the largest that divide them.
BLOCKS = (512, 256)


def attend(
    query: Float[Array, "B N H K"],
    key: Float[Array, "B M H K"],
    value: Float[Array, "B M H K"],
    mask: Bool[Array, "#B 1 1 M"] | Int[Array, "B 1 1 M"] | None,
    causal: bool,
) -> Float[Array, "B N H K"]:
    """softmax(Q K^T / sqrt(K)) V over the unmasked keys; the softmax is in float32.

    A mask of segment ids, those of the queries too, leaves each query the keys of its own segment. NaN and infinity in
    masked keys and values may reach the result.
    """
    return choose_kernel(query, key)(query, key, value, mask, causal)


def choose_kernel(query: Float[Array, "B N H K"], key: Float[Array, "B M H K"]) -> Kernel:
    """The fastest kernel for the device in the arguments' types.

    A fused kernel, which never writes the scores to memory, where one supports these shapes; otherwise two matrix
    products compiled by XLA.
    """
    type_, other = jax.typeof(query), jax.typeof(key)
    mesh, split = type_.sharding.mesh, type_.sharding.spec
    # Each device has whole rows of scores, and no two devices the same ones.
    used = {axis for each in split if each for axis in (each if isinstance(each, tuple) else (each,))}
    apart = split == other.sharding.spec and split[1] is None and split[3] is None
    if (
        mesh.abstract_device is None
        or not apart
        or any(mesh.shape[axis] > 1 for axis in mesh.shape if axis not in used)
    ):
        return xla_attention
    platform, kind = mesh.abstract_device.platform, mesh.abstract_device.device_kind
    rows, columns, head = type_.shape[1], other.shape[1], type_.shape[3]
    if platform == "tpu" and type_.dtype == jnp.bfloat16 and not head % 128 and _block(rows) and _block(columns):
        return functools.partial(shard_mapped, splash)
    # The even sizes are what cuDNN asks for where there is a mask.
    even = not (rows % 2 or columns % 2 or head % 8) and head <= 128 and min(rows, columns) >= BLOCKS[-1]
    if platform == "gpu" and kind.startswith("NVIDIA") and type_.dtype == jnp.bfloat16 and even:
        return functools.partial(shard_mapped, cudnn)
    return xla_attention


def visible(mask: Array) -> Bool[Array, "B 1 #N M"]:
    """The keys that a query sees by a mask [B 1 1 M]: with segment ids those of its own segment."""
    return (mask == jnp.swapaxes(mask, 2, 3)) & (mask > 0) if has_segments(mask) else mask


def xla_attention(query: Array, key: Array, value: Array, mask: Array | None, causal: bool) -> Array:
    """Two matrix products around a softmax; works on every device."""
    # Heads first: with tokens first (`jax.nn.dot_product_attention`) JAX 0.10 takes a third longer on a CPU.
    query, key, value = (jnp.swapaxes(array, 1, 2) for array in (query, key, value))
    logits = jnp.einsum("bhnk,bhmk->bhnm", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    lowest = jnp.finfo(jnp.float32).min
    if mask is not None:
        logits = jnp.where(visible(mask), logits, lowest)
    if causal:
        logits = jnp.where(jnp.tri(logits.shape[2], logits.shape[3], dtype=bool), logits, lowest)
    weights = jax.nn.softmax(logits).astype(value.dtype)
    return jnp.swapaxes(jnp.einsum("bhnm,bhmk->bhnk", weights, value), 1, 2)


def cudnn(query: Array, key: Array, value: Array, mask: Array | None, causal: bool) -> Array:
    """NVIDIA's fused kernel (after Dao et al. 2022, FlashAttention)."""
    if mask is not None:
        mask = jnp.broadcast_to(visible(mask), (query.shape[0], 1, query.shape[1], key.shape[1]))
    return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal, implementation="cudnn")


def splash(query: Array, key: Array, value: Array, mask: Array | None, causal: bool, interpret: bool = False) -> Array:
    """JAX's fused kernel for TPUs, which skips fully masked blocks of scores.

    `interpret` runs it on any device.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (_, rows, heads, head), columns = query.shape, key.shape[1]
    across, along = _block(rows), _block(columns)
    blocks = kernels.BlockSizes(
        block_q=across,
        block_kv=along,
        block_kv_compute=along,
        block_q_dkv=across,
        block_kv_dkv=along,
        block_kv_dkv_compute=along,
        use_fused_bwd_kernel=True,
    )
    seen = masks.CausalMask((rows, columns)) if causal else masks.FullMask((rows, columns))
    kernel = kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([seen] * heads), block_sizes=blocks, interpret=interpret
    )

    def each(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
        ids = None
        if mask is not None:
            # Tokens see those of their own segment: without ids that is 1, which hidden ones are not in.
            own = mask[0, 0].astype(jnp.int32)
            ids = kernels.SegmentIds(own if has_segments(mask) else jnp.ones(rows, jnp.int32), own)
        return kernel(query * head**-0.5, key, value, segment_ids=ids)

    if mask is not None:
        mask = jnp.broadcast_to(mask, (query.shape[0], *mask.shape[1:]))
    query, key, value = (jnp.swapaxes(array, 1, 2) for array in (query, key, value))
    return jnp.swapaxes(jax.vmap(each)(query, key, value, mask), 1, 2)


def _block(size: int) -> int:
    """The block size along a dimension; 0 where none divides it or it is too short to gain."""
    return next((block for block in BLOCKS if not size % block), 0)


def shard_mapped(
    kernel: Kernel, query: Array, key: Array, value: Array, mask: Array | None, causal: bool
) -> Float[Array, "B N H K"]:
    """Runs a kernel that XLA cannot partition on each device's own examples and heads."""
    split = jax.typeof(query).sharding.spec
    # A mask of all examples at once is every device's, and so is one that is not there.
    of_mask = None if mask is None else jax.P(split[0] if mask.shape[0] > 1 else None)

    def local(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
        return kernel(query, key, value, mask, causal)

    # Splash attention does not state along which axes its result varies, so that cannot be checked.
    sharded = shard_map(local, in_specs=(split, split, split, of_mask), out_specs=split, check_vma=False)
    return sharded(query, key, value, mask)
