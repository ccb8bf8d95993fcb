"""How transformer blocks are built: norms, biases, activation and positions."""

from collections.abc import Callable
from typing import Literal

import chz
import jax
from jaxtyping import Array

Activation = Literal["gelu", "gelu_exact", "quick_gelu", "silu", "relu"]


def quick_gelu(x: Array) -> Array:
    """x * sigmoid(1.702 x), an approximation of GELU (Hendrycks & Gimpel 2016, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": jax.nn.gelu,
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": quick_gelu,
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


@chz.chz
class BlockOptions:
    """How transformer blocks are built; by default pre-norm with RMSNorm, GELU and without biases."""

    norm: Literal["rms", "layer"] = chz.field(default="rms", doc="RMSNorm, or LayerNorm with a bias (Ba et al. 2016)")
    epsilon: float = chz.field(default=1e-6, doc="added to the mean square, or to the variance, in a norm")
    post_norm: bool = chz.field(
        default=False, doc="normalise every residual sum, as BERT does, and not the input of every part"
    )
    bias: bool = chz.field(default=False, doc="attention and MLP add biases")
    key_bias: bool = chz.field(
        default=True, doc="where there are biases, keys have one too, which changes no attention; Whisper has none"
    )
    qkv_bias: bool = chz.field(default=False, doc="queries, keys and values have biases even where the rest has none")
    activation: Activation = chz.field(
        default="gelu", doc="of the MLP; gelu by its tanh approximation, gelu_exact by erf"
    )
    gated: bool = chz.field(
        default=False, doc="multiply by a second projection in the MLP: with silu SwiGLU (Shazeer 2020)"
    )
    hidden: int | None = chz.field(default=None, doc="width of the MLP; None: 4 times the width")
    layer_scale: float | None = chz.field(
        default=None, doc="start of a learned factor of every residual branch (Touvron et al. 2021); None: without"
    )
    causal: bool = chz.field(default=False, doc="hide later tokens from the self-attention")
    kv_heads: int | None = chz.field(
        default=None, doc="heads of keys and values, each for several of queries (Ainslie et al. 2023); None: as many"
    )
    rope: float | None = chz.field(
        default=None, doc="base of rotary position embeddings (Su et al. 2021); None: without"
    )

    @chz.validate
    def _valid(self) -> None:
        for name in ("hidden", "kv_heads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more")
        if self.epsilon <= 0:
            raise ValueError("epsilon must be above 0")
        if self.rope is not None and self.rope <= 1:
            raise ValueError("rope must be above 1")
