"""The whole model on one page: encoders -> fusion -> outputs."""

import contextlib
import copy
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax import generators, heads
from mmjax.encoders import Encoder
from mmjax.encoders.base import build_encoder
from mmjax.errors import UserError
from mmjax.fields import OPERATIONAL
from mmjax.fusion import CrossAttention, Fusion
from mmjax.generators.decoding import Decoding
from mmjax.hardware.machine import Machine, this_machine
from mmjax.layers.lora import Lora, add_lora
from mmjax.layers.low_precision import Precision, quantize_matmuls
from mmjax.layers.output import Output
from mmjax.layers.packed import unpack_batch, unpack_tokens
from mmjax.layers.settings import Settings
from mmjax.layers.stack import Remat
from mmjax.sharding.rules import Rules
from mmjax.types import Average, Batch, DimSize, Feature, Fused, Metrics, Tokens

# The critics' key is that of the model folded with a number that no count of the model's parameters reaches: these are
# drawn from the same key folded with 0, 1, 2, ... (and of a stack, whose keys are split, `split(k, n)[i]` is
# `fold_in(k, i)`).
CRITICS = 2**31 - 1

# Everything that can come out, by class name.
OUTPUTS: dict[str, type[Output]] = heads.TABLE | generators.TABLE


@chz.chz
class Model:
    """Configuration of a model: an encoder per modality, the fusion, and the outputs."""

    encoders: Mapping[str, Encoder | None] = chz.field(doc="an encoder per modality; None leaves the modality out")
    outputs: Mapping[str, Output | None] = chz.field(doc="heads and generators by name; None leaves one out")
    fusion: Fusion = chz.field(default=CrossAttention(), doc="how the modalities are combined")
    width: int = chz.field(default=128, doc="width D of the tokens")
    dtype: Literal["auto", "float32", "bfloat16"] = chz.field(
        default="auto",
        doc="dtype of the computation; parameters are float32; auto: bfloat16 where the machine multiplies it faster",
        metadata=OPERATIONAL,
    )
    matmul_precision: Literal["exact"] | Precision = chz.field(
        default="exact", doc="matrix products of attention and MLPs: exact in `dtype`, or quantized to int8 or float8"
    )
    dropout: float = chz.field(default=0.0, doc="dropout rate of residual branches")
    modality_dropout: float = chz.field(
        default=0.0, doc="probability in training that a modality is hidden from the fusion"
    )
    lora: tuple[Lora, ...] = chz.field(
        default=(), doc="low-rank updates of linear layers, trained in place of them; the first that matches counts"
    )
    remat: Remat = chz.field(default="none", doc="what the backward pass recomputes")
    unroll: bool | None = chz.field(
        default=None,
        doc="compile blocks one by one: faster on a CPU, slower to compile; None: on CPUs",
        metadata=OPERATIONAL,
    )

    @chz.validate
    def _names(self) -> None:
        if "fusion" in self.outputs:
            raise ValueError("outputs.fusion needs another name: the fusion's own metrics use it")

    @chz.validate
    def _shares(self) -> None:
        for key, share in (("dropout", self.dropout), ("modality_dropout", self.modality_dropout)):
            if not 0 <= share < 1:
                raise ValueError(f"{key}={share} must lie in [0, 1)")

    def with_decoding(self, decoding: Decoding | None, outputs: Collection[str]) -> "Model":
        """The model with this decoding of texts and codes. Raises UserError where no output is decoded."""
        if decoding is None:
            return self
        decoded = {
            name: output for name, output in self.outputs.items() if output is not None and output.is_autoregressive
        }
        if not decoded.keys() & set(outputs):
            listed = ", ".join(outputs) or "nothing"
            raise UserError(f"decoding says how texts and codes are written, and nothing of {listed} is; leave it out")
        changed = {name: chz.replace(output, decoding=decoding) for name, output in decoded.items()}
        return chz.replace(self, outputs={**self.outputs, **changed})

    def build(self, features: dict[str, Feature], *, rules: Rules, rngs: nnx.Rngs) -> "Multimodal":
        """Builds the model; raises UserError where a feature is missing or cannot be encoded."""
        settings = self._settings(rules)
        encoders = {name: encoder for name, encoder in sorted(self.encoders.items()) if encoder is not None}
        outputs = {name: output for name, output in sorted(self.outputs.items()) if output is not None}
        for name in encoders:
            if name not in features:
                raise UserError(
                    f"model.encoders.{name} has no data.inputs.{name} to read; there are {', '.join(features)}"
                )
        if not encoders or not outputs:
            raise UserError("a model needs at least one of model.encoders and one of model.outputs")
        for name, output in outputs.items():
            for modality in output.unimodal_inputs:
                if modality in features and modality not in self.encoders:
                    raise UserError(
                        f"model.outputs.{name} reads the tokens of {modality}, which has no model.encoders.{modality}"
                    )
        return add_lora(Multimodal(self, encoders, outputs, features, settings, rngs), self.lora, rngs)

    def build_critics(self, features: dict[str, Feature], *, rules: Rules, rngs: nnx.Rngs) -> Any:
        """The critics of the outputs, by output, trained beside the model; None without any."""
        settings, critics = self._settings(rules), {}
        for name, output in sorted(self.outputs.items()):
            critic = None if output is None else output.build_critic(features, settings, rngs)
            if critic is not None:
                critics[name] = critic
        return nnx.Dict(critics) if critics else None

    def resolve(self, machine: Machine) -> "Model":
        """The same model with what it leaves to the machine filled in: `dtype` and `unroll`."""
        dtype = machine.dtype if self.dtype == "auto" else self.dtype
        return chz.replace(self, dtype=dtype, unroll=machine.unroll if self.unroll is None else self.unroll)

    def _settings(self, rules: Rules) -> Settings:
        resolved = self.resolve(this_machine())
        return Settings(
            width=self.width,
            rules=rules,
            dtype=jnp.dtype(resolved.dtype),
            dropout=self.dropout,
            remat=self.remat,
            unroll=bool(resolved.unroll),
        )


class Multimodal(nnx.Module):
    """Encoders -> fusion -> outputs.

    Every method is a pure function of the parameters, the batch and the key.
    """

    def __init__(
        self,
        config: Model,
        encoders: dict[str, Encoder],
        outputs: dict[str, Output],
        features: dict[str, Feature],
        settings: Settings,
        rngs: nnx.Rngs,
    ):
        readable = {
            name: feature for name, feature in features.items() if name in encoders or name not in config.encoders
        }
        parts = {}
        for name, encoder in encoders.items():
            with _named(f"model.encoders.{name}"):
                parts[name] = build_encoder(encoder, features[name], settings, rngs)
        self.encoders = nnx.Dict(parts)
        with _named("model.fusion"):
            self.fusion = config.fusion.build(tuple(encoders), settings, rngs)
        heads = {}
        for name, output in outputs.items():
            with _named(f"model.outputs.{name}"):
                heads[name] = output.build(readable, settings, rngs)
        self.outputs = nnx.Dict(heads)
        self.weights = {name: output.weight for name, output in outputs.items()}
        self.hidden_modalities = {
            name: tuple(sorted(set(output.hidden_modalities) & set(encoders))) for name, output in outputs.items()
        }
        self.critic_hidden_modalities = {
            name: frozenset(output.critic_hidden_modalities) & set(encoders) for name, output in outputs.items()
        }
        self.reads = {name: frozenset(output.unimodal_inputs) for name, output in outputs.items()}
        self.width, self.rules, self.modality_dropout = settings.width, settings.rules, config.modality_dropout
        if config.matmul_precision != "exact":
            quantize_matmuls(self, config.matmul_precision)

    def without_modalities(self, modalities: Collection[str]) -> "Multimodal":
        """The same model with these modalities hidden from all outputs."""
        model = copy.copy(self)
        hidden = set(modalities) & set(self.encoders)
        model.hidden_modalities = {
            name: tuple(sorted(hidden.union(hidden_modalities)))
            for name, hidden_modalities in self.hidden_modalities.items()
        }
        return model

    def with_outputs(self, outputs: Collection[str]) -> "Multimodal":
        """The same model with only these outputs."""
        model = copy.copy(self)
        model.outputs = nnx.Dict({name: self.outputs[name] for name in outputs})
        model.weights = {name: self.weights[name] for name in outputs}
        model.hidden_modalities = {name: self.hidden_modalities[name] for name in outputs}
        return model

    def is_defined(self, output: str) -> bool:
        """Whether an output sees any modality, and all those whose own tokens it reads."""
        hidden_modalities = set(self.hidden_modalities[output])
        return hidden_modalities < set(self.encoders) and not hidden_modalities & self.reads[output]

    def encode(self, batch: Batch, key: jax.Array | None) -> tuple[dict[str, Tokens], dict[str, Any]]:
        """Every modality's tokens; the values of absent modalities are replaced by zeros first."""
        streams, intermediates = {}, {}
        keys = _split(key, len(self.encoders))
        for (name, encoder), encoder_key in zip(self.encoders.items(), keys, strict=True):
            values, mask, present = batch.values[name], batch.mask.get(name), batch.present[name]
            packed = batch.packed.get(name)
            if packed is None:  # the rows of packed features hold nothing of an absent one
                values = jnp.where(present.reshape(-1, *[1] * (values.ndim - 1)), values, 0)
                mask = None if mask is None else mask & present[:, None]
            with jax.named_scope(f"encoders/{name}"):
                tokens, intermediates[name] = encoder(values, mask, encoder_key)
            if packed is not None:
                tokens = unpack_tokens(tokens, packed, self.rules)
            _check_tokens(f"model.encoders.{name}: {type(encoder).__name__}", tokens, present.shape[0], self.width)
            streams[name] = dataclasses.replace(tokens, mask=tokens.mask & present[:, None])
        return streams, intermediates

    def fuse(
        self, streams: dict[str, Tokens], hidden: tuple[str, ...], key: jax.Array | None
    ) -> tuple[Fused, dict[str, Any]]:
        """Fused features without the `hidden` modalities, and intermediates."""
        drop_key, fusion_key = _split(key, 2)
        seen = {
            name: Tokens(tokens.values, jnp.zeros_like(tokens.mask) if name in hidden else tokens.mask, tokens.time)
            for name, tokens in streams.items()
        }
        if drop_key is not None:
            seen = drop_modalities(seen, self.modality_dropout, drop_key)
        with jax.named_scope("fusion"):
            tokens, pooled, intermediates = self.fusion(seen, fusion_key)
        part, examples = f"model.fusion: {type(self.fusion).__name__}", next(iter(seen.values())).mask.shape[0]
        _check_tokens(part, tokens, examples, self.width)
        _check_shape(f"{part} returned a pooled summary", pooled, "B D", B=examples, D=self.width)
        return Fused(tokens, pooled, streams), intermediates

    def __call__(self, batch: Batch, key: jax.Array | None = None) -> tuple[Fused, dict[str, Any]]:
        """Fused features of a batch, and intermediates. A key means training: dropout is on."""
        encode_key, fuse_key = _split(key, 2)
        streams, intermediates = self.encode(batch, encode_key)
        fused, intermediates["fusion"] = self.fuse(streams, (), fuse_key)
        return fused, intermediates

    def critic_hidden(self, output: str) -> tuple[str, ...]:
        """The modalities hidden from an output's critic."""
        return tuple(sorted(self.critic_hidden_modalities[output].union(self.hidden_modalities[output])))

    def fused_views(
        self, batch: Batch, key: jax.Array | None, critics: Collection[str] = ()
    ) -> tuple[dict[tuple[str, ...], Fused], dict[str, Float[Array, ""]]]:
        """Fused features by hidden modalities, and the fusion's own losses averaged over these.

        One entry for every set of modalities that an output, or one of the `critics`, must not see.
        """
        encode_key, fuse_key = _split(key, 2)
        streams, _ = self.encode(batch, encode_key)
        kinds = sorted({*self.hidden_modalities.values(), *map(self.critic_hidden, critics)})
        fused_views: dict[tuple[str, ...], Fused] = {}
        losses: dict[str, Float[Array, ""]] = {}
        for hidden, view_key in zip(kinds, _split(fuse_key, len(kinds)), strict=True):
            fused_views[hidden], intermediates = self.fuse(streams, hidden, view_key)
            for name, loss in intermediates.get("losses", {}).items():
                losses[name] = losses.get(name, jnp.float32(0)) + loss / len(kinds)
        return fused_views, losses

    def loss_weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """The weight of the batch in every output's loss, and in the fusion's own."""
        batch = unpack_batch(batch, self.rules)
        fusion = jnp.float32(_size(batch))
        return {"fusion": fusion} | {name: output.weight(batch) for name, output in self.outputs.items()}

    def loss(
        self,
        batch: Batch,
        key: jax.Array | None = None,
        weights: dict[str, Float[Array, ""]] | None = None,
        step: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, ""], Metrics]:
        """The weighted sum of the outputs' losses and the fusion's own, and metrics as "output/metric".

        `weights` are those of the whole batch where this is a part of it (gradient accumulation), so that the losses of
        parts add up. `step` counts the training's steps before this one; None in an evaluation.
        """
        loss, _, metrics = self.adversarial_loss({}, batch, key, weights, step)
        return loss, metrics

    def adversarial_loss(
        self,
        critics: Mapping[str, Any],
        batch: Batch,
        key: jax.Array | None = None,
        weights: dict[str, Float[Array, ""]] | None = None,
        step: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, ""], Metrics]:
        """`loss` with the critics of some outputs, and the sum of these critics' own losses.

        The gradient of the two losses' sum holds both updates: the model's is that of the first only, the critics' that
        of the second only, and one forward pass serves both.
        """
        forward_key, output_key = _split(key, 2)
        fused_views, losses = self.fused_views(batch, forward_key, critics)
        batch = unpack_batch(batch, self.rules)
        total, critic_total = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)
        metrics: Metrics = {}
        for name, own in losses.items():
            size = jnp.float32(_size(batch))
            metrics[f"fusion/{name}"] = Average(own * size, size)
            total = total + own * size / (size if weights is None else weights["fusion"])
        for (name, output), loss_key in zip(self.outputs.items(), _split(output_key, len(self.outputs)), strict=True):
            fused = fused_views[self.hidden_modalities[name]]
            with jax.named_scope(f"outputs/{name}"):
                if name in critics:
                    make_key, judge_key = _split(loss_key, 2)
                    output = output.generate(fused, batch, make_key, step)
                    condition = fused_views[self.critic_hidden(name)].pooled
                    loss, critic_loss, details = critics[name].losses(output, condition, judge_key, step)
                    critic_total = critic_total + _value(critic_loss, name, weights)
                else:
                    loss, details = output.loss(fused, batch, loss_key, step)
            total = total + self.weights[name] * _value(loss, name, weights)
            metrics |= {f"{name}/{detail}": average for detail, average in {"loss": loss, **details}.items()}
        return total, critic_total, metrics

    def predict(self, batch: Batch, key: jax.Array | None = None) -> dict[str, dict[str, Array]]:
        """Every output's predictions, without dropout."""
        fused_views, _ = self.fused_views(batch, None)
        keys = _split(key, len(self.outputs))
        return {
            name: output.predict(fused_views[self.hidden_modalities[name]], output_key)
            for (name, output), output_key in zip(self.outputs.items(), keys, strict=True)
        }


def build_model(key: jax.Array, model: Model, features: dict[str, Feature], rules: Rules) -> Multimodal:
    """A newly initialised model; under `jit` on a mesh its parameters are created sharded."""
    return model.build(features, rules=rules, rngs=nnx.Rngs(key))


def build_critics(key: jax.Array, model: Model, features: dict[str, Feature], rules: Rules) -> Any:
    """Newly initialised critics of the model's outputs, by output; None without any."""
    rngs = nnx.Rngs(jax.random.fold_in(key, CRITICS))
    return model.build_critics(features, rules=rules, rngs=rngs)


def drop_modalities(streams: dict[str, Tokens], rate: float, key: jax.Array) -> dict[str, Tokens]:
    """Drops each modality of each example with probability `rate`, but never the last one."""
    if rate == 0 or len(streams) == 1:
        return streams
    present = jnp.stack([tokens.mask.any(1) for tokens in streams.values()], 1)
    draw = jax.random.uniform(key, present.shape, out_sharding=jax.typeof(present).sharding)
    draw = jnp.where(present, draw, -1.0)
    keep = (draw >= rate) | (draw >= draw.max(1, keepdims=True))
    return {
        name: Tokens(tokens.values, tokens.mask & keep[:, index, None], tokens.time)
        for index, (name, tokens) in enumerate(streams.items())
    }


@contextlib.contextmanager
def _named(key: str) -> Iterator[None]:
    """Prepends the key of a part to its errors, including those of impossible sizes."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(key) else f"{key}: {error}") from error
    except (ArithmeticError, MemoryError, ValueError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{key} cannot be built with these values: {reason}") from error


def _check_tokens(part: str, tokens: Tokens, examples: DimSize, width: int) -> None:
    """Raises UserError where a part, such as one of the user's own, returned tokens of a wrong shape."""
    _check_shape(f"{part} returned tokens", tokens.values, "B N D", B=examples, D=width)
    _check_shape(f"{part} returned a mask", tokens.mask, "B N", B=examples, N=tokens.values.shape[1])


def _check_shape(what: str, array: Array, axes: str, **sizes: DimSize) -> None:
    shape, names = jnp.shape(array), axes.split()
    if len(shape) != len(names) or any(sizes.get(name, size) != size for name, size in zip(names, shape, strict=True)):
        wanted = " and ".join(f"{name}={size}" for name, size in sizes.items())
        raise UserError(f"{what} of shape {[*shape]}; expected [{axes}] with {wanted} (D is model.width)")


def _size(batch: Batch) -> int:
    return next(iter(batch.present.values())).shape[0]


def _value(loss: Average, name: str, weights: dict[str, Float[Array, ""]] | None) -> Float[Array, ""]:
    """An output's loss, or this part's contribution to that of the whole batch."""
    return Average(loss.totals, loss.weights if weights is None else weights[name]).value()


def _split(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    return [None] * count if key is None else list(jax.random.split(key, count))
