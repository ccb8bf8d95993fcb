"""What models answer when modalities are hidden or noised."""

import functools
import zlib
from collections.abc import Collection, Mapping
from typing import NamedTuple

import chz
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from mmjax.data.loader import Data, Loader
from mmjax.data.place import Feed, rows_of
from mmjax.lockstep import over_runs
from mmjax.model import Multimodal
from mmjax.sharding.rules import Rules
from mmjax.types import Batch, Feature, Spectrum, Text


class Answers(NamedTuple):
    """Class probabilities of S models for A answers, the truths, and the place of the example that each is about.

    An example with several slots has several answers.
    """

    probabilities: Float[np.ndarray, "S A K"]
    truth: Int[np.ndarray, "A"]
    examples: Int[np.ndarray, "A"]

    @property
    def right(self) -> Float[np.ndarray, "S A"]:
        """1 where the most probable class is the true one."""
        return (self.probabilities.argmax(-1) == self.truth).astype(np.float64)


class Prober:
    """Asks one `Classify` output of `count` stacked models about evenly spread examples of a split, again and again.

    `data` is bound and `sharding` is how a batch lies on the mesh, which is the current one whenever this is called.
    The batches are read once and stay on the devices.
    """

    def __init__(
        self,
        data: Data,
        data_dir: str,
        split: str,
        batch_size: int,
        output: str,
        target: str,
        *,
        sharding: NamedSharding,
        rules: Rules,
        count: int,
        examples: int | None = None,
    ):
        self._output, self._target, self._count, self._batch_size = output, target, count, batch_size
        rows = rows_of(sharding, batch_size)
        data = chz.replace(data, workers=0)
        loader = Loader(data, data_dir, split, batch_size, rows=rows, examples=examples)
        with Feed(loader, sharding, 0, loader.steps) as feed:
            self._batches = [placed.batch for placed in feed]
        self._step = jax.jit(
            functools.partial(_probe, features=data.features, output=output, target=target, rules=rules, count=count)
        )

    def ask(
        self, models: Multimodal, *, hidden: Collection[str] = (), noise: Mapping[str, float] | None = None
    ) -> Answers:
        """What the models answer without the modalities `hidden`, and with `noise` (see `corrupt`) in others."""
        probabilities, truths, examples = [], [], []
        noise = noise or {}
        for number, batch in enumerate(self._batches):
            keep = {name: np.bool_(name not in hidden) for name in models.encoders}
            amounts = {name: np.float32(noise.get(name, 0.0)) for name in models.encoders}
            key = jax.random.fold_in(jax.random.key(0), number)
            said, truth, real = jax.device_get(self._step(models, batch, keep, amounts, key))
            said = said if self._count > 1 else said[None]
            probabilities.append(said[:, real])
            truths.append(truth[real])
            examples.append(number * self._batch_size + np.nonzero(real)[0])
        return Answers(np.concatenate(probabilities, 1), np.concatenate(truths), np.concatenate(examples))


def _probe(
    models: Multimodal,
    batch: Batch,
    keep: Mapping[str, Array],
    amounts: Mapping[str, Array],
    key: jax.Array,
    *,
    features: Mapping[str, Feature],
    output: str,
    target: str,
    rules: Rules,
    count: int,
) -> tuple[Float[Array, "..."], Int[Array, "B S"], Array]:
    """Probabilities [B S K], of several models [M B S K], true classes and which of them count; whole everywhere."""
    present = {name: there & keep[name] if name in keep else there for name, there in batch.present.items()}
    changed = corrupt(Batch(batch.values, batch.mask, present), features, amounts, key)

    def answer(model: Multimodal) -> Array:
        said = model.predict(changed)[output]["probabilities"]
        return rules.gather(said)

    real = batch.mask[target] & batch.present[target][:, None]
    return over_runs(answer, count)(models), *rules.gather((batch.values[target], real))


def corrupt(batch: Batch, features: Mapping[str, Feature], amounts: Mapping[str, Array], key: jax.Array) -> Batch:
    """The batch with noise in the modalities that `amounts` names: as many times as strong as the signal.

    Pictures and spectra get white Gaussian noise with `amount` times the standard deviation that the batch's values
    have; of a text's tokens a share amount / (1 + amount) is replaced by random ones.
    """
    values = dict(batch.values)
    for name, amount in amounts.items():
        x, own = batch.values[name], jax.random.fold_in(key, zlib.crc32(name.encode()))
        sharding = jax.typeof(x).sharding
        feature = features[name]
        if isinstance(feature, Text):
            chance, other = jax.random.split(own)
            drawn = jax.random.randint(other, x.shape, 1, feature.vocabulary, x.dtype, out_sharding=sharding)
            replaced = jax.random.uniform(chance, x.shape, out_sharding=sharding) < amount / (1 + amount)
            values[name] = jnp.where(replaced & batch.mask[name], drawn, x)
            continue
        real = batch.mask[name][..., None] if isinstance(feature, Spectrum) else jnp.ones_like(x, bool)
        real = real & batch.present[name].reshape(-1, *[1] * (x.ndim - 1)) & jnp.ones_like(x, bool)
        count = jnp.maximum(real.sum(), 1)
        mean = jnp.where(real, x, 0).sum() / count
        deviation = jnp.sqrt(jnp.where(real, (x - mean) ** 2, 0).sum() / count)
        noise = jax.random.normal(own, x.shape, x.dtype, out_sharding=sharding)
        values[name] = jnp.where(real, x + amount * deviation * noise, x)
    return Batch(values, batch.mask, batch.present)
