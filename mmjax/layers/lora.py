"""LoRA: low-rank updates of linear layers, trained in place of their kernels (Hu et al. 2021)."""

import functools
import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import chz
import jax
from flax import nnx
from jax.sharding import PartitionSpec
from jax.tree_util import keystr, tree_flatten_with_path
from jaxtyping import Array, Float

from mmjax.errors import UserError
from mmjax.layers.linear import Contraction, Linear, contract, gather_unreduced, make_parameter
from mmjax.layers.tree import named_leaves

ModelTree = TypeVar("ModelTree")


@chz.chz
class Lora:
    """Low-rank updates of linear layers by path: y = x W + b + (alpha / rank) x A B.

    A [inputs, rank] is drawn from N(0, 1 / inputs) and B [rank, outputs] is zero, so that a new model equals the one
    without. W and b are frozen, unless one of `optimizer.rules` matches them.
    """

    pattern: str = chz.field(doc="a whole path of linear layers, * for any part of it: encoders/image/*/query")
    rank: int = chz.field(default=8, doc="columns of A and rows of B")
    alpha: float = chz.field(default=16.0, doc="rank times the factor of the update")

    @chz.validate
    def _positive(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank={self.rank} must be at least 1")
        if self.alpha <= 0:
            raise ValueError(f"alpha={self.alpha} must be above 0")


class LoraLinear(Linear):
    """A linear layer, or a stack of them, with a low-rank update: lora_a and lora_b beside its parameters."""

    def __init__(self, linear: Linear, config: Lora, rngs: nnx.Rngs):
        self.kernel, self.bias = linear.kernel, linear.bias
        self.axes, self.inputs, self.rules, self.contract = linear.axes, linear.inputs, linear.rules, linear.contract
        self.structure, self.scale = jax.tree.structure(linear), config.alpha / config.rank
        self.a_axes, self.b_axes = (*self.axes[: self.inputs], None), (None, *self.axes[self.inputs :])
        shape, layers = self.kernel.shape, self.kernel.ndim - len(self.axes)
        stack, inputs, outputs = shape[:layers], shape[layers : layers + self.inputs], shape[layers + self.inputs :]
        make, unsplit = functools.partial(make_parameter, rules=self.rules, rngs=rngs), (None,) * layers
        init = jax.nn.initializers.normal(math.prod(inputs) ** -0.5)
        shape, axes = (*stack, *inputs, config.rank), (*unsplit, *self.a_axes)
        self.lora_a = make(init, shape, axes, matrix=(len(inputs), 1))
        shape, axes = (*stack, config.rank, *outputs), (*unsplit, *self.b_axes)
        self.lora_b = make(jax.nn.initializers.zeros, shape, axes, matrix=(1, len(outputs)))

    def product(
        self, rows: Float[Array, "N ..."], kernel: Array, contraction: Contraction, spec: PartitionSpec | None
    ) -> Float[Array, "N ..."]:
        y = super().product(rows, kernel, contraction, spec)
        a = gather_unreduced(self.lora_a, self.a_axes, rows.dtype, self.rules)
        b = gather_unreduced(self.lora_b, self.b_axes, rows.dtype, self.rules)
        low = contract(rows, a, contraction, self.rules.out_sharding("batch", None))
        return y + self.scale * contract(low, b, (((1,), (0,)), ((), ())), spec)

    def merged(self) -> Linear:
        """The layer that was updated, whose kernel holds the update."""
        kernel, a, b = self.kernel[...], self.lora_a[...], self.lora_b[...]
        layers, sharding = tuple(range(kernel.ndim - len(self.axes))), jax.typeof(kernel).sharding
        update = jax.lax.dot_general(
            a,
            b,
            (((a.ndim - 1,), (len(layers),)), (layers, layers)),
            precision=jax.lax.Precision.HIGHEST,
            out_sharding=None if sharding.mesh.empty else sharding,
        )
        leaves = [leaf for name, leaf in named_leaves(self) if not is_lora(name)]
        linear = jax.tree.unflatten(self.structure, leaves)
        linear.kernel = linear.kernel.replace(kernel + self.scale * update)
        return linear


def add_lora(model: ModelTree, configs: Sequence[Lora], rngs: nnx.Rngs) -> ModelTree:
    """The model with low-rank updates of its linear layers; the first pattern that matches a path counts.

    Raises UserError where a pattern matches no linear layer.
    """
    if not configs:
        return model
    nodes, structure = tree_flatten_with_path(model, is_leaf=_is_linear)
    linears = [_name(path) for path, node in nodes if _is_linear(node)]
    for index, config in enumerate(configs):
        if not any(fnmatchcase(name, config.pattern) for name in linears):
            raise UserError(
                f"model.lora.{index}.pattern={config.pattern} matches no linear layer; among them are "
                f"{', '.join(linears[:: len(linears) // 5 + 1])}"
            )
    updated = []
    for path, node in nodes:
        matching = [config for config in configs if _is_linear(node) and fnmatchcase(_name(path), config.pattern)]
        updated.append(LoraLinear(node, matching[0], rngs) if matching else node)
    return jax.tree.unflatten(structure, updated)


def merge_lora(model: ModelTree) -> ModelTree:
    """The model without low-rank updates, whose kernels hold them: W + (alpha / rank) A B.

    Its outputs are the same up to rounding. Its configuration is the model's with `lora=()`.
    """
    return jax.tree.map(
        lambda node: node.merged() if isinstance(node, LoraLinear) else node,
        model,
        is_leaf=lambda node: isinstance(node, LoraLinear),
    )


def lora_base_parameters(model: Any) -> list[str]:
    """The path names of the kernels and biases of the linear layers that have low-rank updates."""
    found = tree_flatten_with_path(model, is_leaf=_is_linear)[0]
    return [
        f"{_name(path)}/{name}"
        for path, node in found
        if isinstance(node, LoraLinear)
        for name, _ in named_leaves(node)
        if not is_lora(name)
    ]


def is_lora(name: str) -> bool:
    """Whether a path name is that of a matrix of a low-rank update."""
    return name.rpartition("/")[2] in ("lora_a", "lora_b")


def _is_linear(node: Any) -> bool:
    return isinstance(node, Linear)


def _name(path: Any) -> str:
    """The path of a layer; `path_name` would take one that is called value for that of a parameter."""
    return keystr(path, simple=True, separator="/")
