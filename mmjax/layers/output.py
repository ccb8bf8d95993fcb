"""The base class of outputs: a configuration that builds a module with a loss and a prediction."""

import abc
from collections.abc import Mapping
from typing import Any, TypeVar

import chz
import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from mmjax.errors import UserError
from mmjax.layers.settings import Settings
from mmjax.types import Average, Batch, Feature, Fused, Metrics, Tokens

Kind = TypeVar("Kind")


class OutputModule(nnx.Module):
    """A built output: its loss, its predictions, and what evaluation can do with these.

    Attributes:
        truth_feature: the feature that its predictions are compared with; None where none is the right one.
        writes_text: whether these are token ids, under "ids".
        aligned_modalities: the two modalities that it embeds and compares: it has `embed_modality` and `compare`.
        aligned_texts: those of them that are texts.
        reconstructs: whether it encodes and decodes its target: it has `reconstruct`.
        explainable: whether attribution can explain its predictions: it has `answer` and `answer_logits`.
    """

    truth_feature: str | None = None
    writes_text = False
    aligned_modalities: tuple[str, ...] = ()
    aligned_texts: tuple[str, ...] = ()
    reconstructs = False
    explainable = False

    @abc.abstractmethod
    def weight(self, batch: Batch) -> Float[Array, ""]:
        """The total weight of the batch's examples in the loss, equal to the `weight` of the loss itself.

        Needs no forward pass.
        """

    @abc.abstractmethod
    def loss(
        self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None
    ) -> tuple[Average, Metrics]:
        """The loss over examples whose target is present, as an average, and other metrics.

        The loss itself is logged as "loss". `step` counts the training's steps before this one; None in an evaluation,
        where every warmup is over.
        """

    @abc.abstractmethod
    def predict(self, fused: Fused, key: jax.Array | None) -> dict[str, Array]:
        """The predictions for each example, as arrays whose first dimension is B."""

    def generate(self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None) -> Any:
        """The input of the critic's `losses`, generated from a batch; for outputs with a critic."""
        raise NotImplementedError

    def statistics(
        self,
        predictions: Mapping[str, np.ndarray],
        truth: Shaped[np.ndarray, "E S ..."],
        real: Bool[np.ndarray, "E S"],
        feature: Feature,
    ) -> dict[str, Any]:
        """Figures of E predictions, of which the `real` slots count, as `mmjax.metrics.statistics.Statistic`s."""
        return {}

    def embed_modality(self, side: int, tokens: Tokens) -> Float[Array, "B E"]:
        """Unit embeddings of the first (0) or second (1) aligned modality."""
        raise NotImplementedError

    def pairwise_losses(
        self, first: Array, second: Array, present: Array, rows: str | None = "batch"
    ) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
        """The loss of every row of paired embeddings, and whether its own partner is the most similar."""
        raise NotImplementedError

    def reconstruct(self, fused: Fused, batch: Batch) -> Float[Array, "B ..."]:
        """The batch's own target, encoded and decoded, in the feature's own terms."""
        raise NotImplementedError

    def answer(self, predictions: Mapping[str, Array]) -> Int[Array, "B P"]:
        """The class or token that is predicted at each of P places."""
        raise NotImplementedError

    def answer_logits(self, answer: Int[Array, "B P"], fused: Fused) -> Float[Array, "B P V"]:
        """The logits among which an answer was chosen, at every place given those before it."""
        raise NotImplementedError

    def token_weights(
        self, answer: Int[Array, "B P"], explained: Bool[Array, "B P"], tokens: Tokens
    ) -> Float[Array, "B T"] | None:
        """The share of each fused token in what an answer reads; None where it reads the pooled features."""
        return None


@chz.chz
class Output(abc.ABC):
    """Configuration of an output. `weight` is its share of the total loss."""

    weight: float = chz.field(default=1.0, doc="weight of this loss in the total")

    @property
    def unimodal_inputs(self) -> tuple[str, ...]:
        """The modalities whose own tokens it reads in addition to the fused ones; they need encoders."""
        return ()

    @property
    def target_feature(self) -> str | None:
        """The feature that it predicts or generates; None where it has none."""
        return None

    @property
    def hidden_modalities(self) -> tuple[str, ...]:
        """The modalities hidden from the fusion it reads; by default the target."""
        return () if self.target_feature is None else (self.target_feature,)

    @property
    def critic_hidden_modalities(self) -> tuple[str, ...]:
        """The modalities also hidden from the fused summary that its critic reads."""
        return ()

    @abc.abstractmethod
    def build(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> OutputModule:
        """Builds the module. Raises UserError where the features lack what it needs."""

    @property
    def generated_feature(self) -> str | None:
        """The feature, an image or audio where `generation` evaluates it, that it generates or reconstructs."""
        return self.target_feature

    @property
    def spectrogram_feature(self) -> str | None:
        """The spectrogram that it turns into a waveform, by `decode(values, mask)`; None where it does not."""
        return None

    @property
    def is_autoregressive(self) -> bool:
        """Whether it writes tokens one after the other, as its field `decoding` says."""
        return False

    @property
    def can_judge(self) -> bool:
        """Whether it predicts classes or text, so that it can judge what others generate."""
        return False

    def build_critic(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> Any:
        """Builds the critic, which is trained beside the model; None where the output has none.

        Its `losses(output, condition, key, step)` returns the generator's and the critic's losses; `output` is what the
        module's `generate(fused, batch, key, step)` returned.
        """
        return None


def find_feature(key: str, name: str, features: dict[str, Feature], *kinds: type[Kind]) -> Kind:
    """The feature of that name; raises UserError, listing the possible ones, if it has another kind."""
    able = {other: feature for other, feature in features.items() if isinstance(feature, kinds)}
    if name not in able:
        raise UserError(f"{key}={name} is not one of the possible features: {', '.join(able) or 'none'}")
    return able[name]
