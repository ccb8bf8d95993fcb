"""Rules that map the logical dimensions of arrays to mesh axes."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

Tree = TypeVar("Tree")

MESH_AXES = ("replica", "data", "fsdp", "expert", "tensor")


@dataclasses.dataclass(frozen=True)
class Rules:
    """The mesh axes of each logical dimension; () leaves the dimension unsharded.

    `embed` is how parameters are *stored* along the residual width (fully sharded data parallelism, Rajbhandari et al.
    2020). They are gathered over it before use, so activations are not sharded along their width; `heads`, `mlp` and
    `vocab` stay sharded in use (tensor parallelism, Shoeybi et al. 2019). The batch is also sharded over the `expert`
    axis, except while experts read it: then each device holds some experts, and the tokens for them of all examples of
    its `group` (expert parallelism, Lepikhin et al. 2021).
    """

    batch: tuple[str, ...] = ("replica", "data", "fsdp", "expert")
    group: tuple[str, ...] = ("replica", "data", "fsdp")
    embed: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    mlp: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()
    expert: tuple[str, ...] = ("expert",)

    def spec(self, *names: str | None) -> PartitionSpec:
        """The partition of an array whose dimensions have these names; None leaves one unsharded.

        Raises ValueError where two dimensions would use the same mesh axis.
        """
        table = dataclasses.asdict(self)
        axes = [tuple(table[name]) if name else () for name in names]
        used = [axis for split in axes for axis in split]
        if len(used) != len(set(used)):
            raise ValueError(f"dimensions {names} would use a mesh axis twice: {axes}")
        return PartitionSpec(*(split[0] if len(split) == 1 else split or None for split in axes))

    def out_sharding(self, *names: str | None) -> PartitionSpec | None:
        """The `out_sharding` argument of operations: the partition, or None where no mesh is set."""
        return under_mesh(self.spec(*names))

    def gathered_spec(self, *names: str | None) -> PartitionSpec:
        """The partition of a parameter in use: gathered along its storage dimension `embed`."""
        return self.spec(*(None if name == "embed" else name for name in names))

    def unreduced_spec(self, spec: PartitionSpec) -> PartitionSpec:
        """The partition of a parameter whose gradient is to be summed over the devices that shard the batch.

        In the types of explicit sharding it is "reduced" over their axes, and its gradient "unreduced".
        """
        sizes = jax.sharding.get_abstract_mesh().shape
        used = {axis for split in spec for axis in (split if isinstance(split, tuple) else (split,))}
        several = any(sizes.get(axis, 1) > 1 for axis in self.batch)
        return PartitionSpec(*spec, reduced=set(self.batch) - used if several else set())

    def gather(self, tree: Tree) -> Tree:
        """Replicates the arrays on every device; for use inside `jit`."""
        return jax.tree.map(lambda array: reshard(array, self.spec(*[None] * array.ndim)), tree)

    def axes(self) -> set[str]:
        """Every mesh axis that shards something."""
        return {axis for split in dataclasses.asdict(self).values() for axis in split}


def under_mesh(spec: PartitionSpec) -> PartitionSpec | None:
    """The partition; None where no mesh is set."""
    return None if jax.sharding.get_abstract_mesh().empty else spec


def reshard(x: Array, spec: PartitionSpec) -> Array:
    """The array in that partition; as it is where no mesh is set."""
    return x if jax.sharding.get_abstract_mesh().empty else jax.sharding.reshard(x, spec)


def shard_map(function: Callable, in_specs: Any, out_specs: Any, check_vma: bool = True) -> Callable:
    """The function of what each device holds; of everything where no mesh is set."""
    if jax.sharding.get_abstract_mesh().empty:
        return function
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=check_vma)


_TENSOR = {"heads": ("tensor",), "mlp": ("tensor",), "vocab": ("tensor",)}

PRESETS: dict[str, Rules] = {
    "data": Rules(),
    "fsdp": Rules(embed=("fsdp",)),
    "tensor": Rules(**_TENSOR),
    "fsdp_tensor": Rules(embed=("fsdp",), **_TENSOR),
}
