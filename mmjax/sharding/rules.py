"""Which mesh axes each logical dimension of an array is split over."""

import dataclasses
from typing import TypeVar

import jax
from jax.sharding import PartitionSpec

Tree = TypeVar("Tree")

MESH_AXES = ("replica", "data", "fsdp", "expert", "tensor")


@dataclasses.dataclass(frozen=True)
class Rules:
    """One mesh axis tuple per logical dimension name; () keeps the dimension whole.

    `embed` is how parameters are *stored* along the residual width (fully sharded data parallelism, Rajbhandari et al.
    2020). They are gathered over it where they are used, so activations are whole along their width; `heads`, `mlp` and
    `vocab` stay split in use (tensor parallelism, Shoeybi et al. 2019). Along the mesh axis of the experts the batch is
    split as along `data`, except while experts read it: then each device holds some experts, and the tokens for them of
    all examples of its `group` (expert parallelism, Lepikhin et al. 2021).
    """

    batch: tuple[str, ...] = ("replica", "data", "fsdp", "expert")
    group: tuple[str, ...] = ("replica", "data", "fsdp")
    embed: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    mlp: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()
    expert: tuple[str, ...] = ("expert",)

    def spec(self, *names: str | None) -> PartitionSpec:
        """The partition of an array whose dimensions are called `names`; None is a dimension kept whole.

        Raises ValueError where two dimensions would lie on the same mesh axis.
        """
        table = dataclasses.asdict(self)
        axes = [tuple(table[name]) if name else () for name in names]
        used = [axis for split in axes for axis in split]
        if len(used) != len(set(used)):
            raise ValueError(f"dimensions {names} would use a mesh axis twice: {axes}")
        return PartitionSpec(*(split[0] if len(split) == 1 else split or None for split in axes))

    def in_use(self, *names: str | None) -> PartitionSpec:
        """The partition of a parameter while it is multiplied with: gathered along its storage dimension `embed`."""
        return self.spec(*(None if name == "embed" else name for name in names))

    def summed(self, spec: PartitionSpec) -> PartitionSpec:
        """The partition of a parameter whose gradient is to be added up over the devices that split the batch.

        In the types of explicit sharding it is "reduced" over their axes, and its gradient "unreduced".
        """
        sizes = jax.sharding.get_abstract_mesh().shape
        used = {axis for split in spec for axis in (split if isinstance(split, tuple) else (split,))}
        several = any(sizes.get(axis, 1) > 1 for axis in self.batch)
        return PartitionSpec(*spec, reduced=set(self.batch) - used if several else set())

    def gather(self, tree: Tree) -> Tree:
        """The arrays, whole on every device; inside a compiled program."""
        return jax.tree.map(lambda array: jax.sharding.reshard(array, self.spec(*[None] * array.ndim)), tree)

    def axes(self) -> set[str]:
        """Every mesh axis that splits something."""
        return {axis for split in dataclasses.asdict(self).values() for axis in split}


_TENSOR = {"heads": ("tensor",), "mlp": ("tensor",), "vocab": ("tensor",)}

PRESETS: dict[str, Rules] = {
    "data": Rules(),
    "fsdp": Rules(embed=("fsdp",)),
    "tensor": Rules(**_TENSOR),
    "fsdp_tensor": Rules(embed=("fsdp",), **_TENSOR),
}
