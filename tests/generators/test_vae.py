"""The variational autoencoder: its loss against plain NumPy, its terms against SciPy, what is absent, both forms."""

import dataclasses

import chz
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mmjax.errors import UserError
from mmjax.generators import Vae
from mmjax.generators.gaussian import Gaussian
from mmjax.layers.settings import Settings
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import Fused, Tokens
from tests.reference import draw, slopes
from tests.small import FEATURES, make_batch, put

WIDTH, SIZE = 16, 6
RULES = PRESETS["data"]
CONFIG = Vae(target="image", latent=3, widths=(4, 8), free_bits=0.2, beta=0.5, warmup=10)


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def batch():
    """Six examples; the third has neither picture nor recording."""
    batch = make_batch(size=SIZE)
    for name in ("image", "speech"):
        batch.present[name][2] = False
        batch.values[name][2] = np.nan
    return batch


@pytest.fixture(scope="module")
def fused():
    pooled = jax.device_put(np.random.default_rng(1).normal(size=(SIZE, WIDTH)).astype(np.float32), RULES.spec("batch"))
    return Fused(Tokens(pooled[:, None], pooled[:, :1] > -9), pooled, {})


def build(config, rules=RULES):
    settings = Settings(width=WIDTH, rules=rules)
    return draw(lambda rngs: config.build(FEATURES, settings, rngs))


def run(vae, fused, batch, step=None, key=None):
    compute = jax.jit(lambda vae, fused, batch: vae.loss(fused, batch, key, step))
    return compute(vae, fused, put(batch, RULES))


@pytest.mark.parametrize("target", ["image", "speech"])
@pytest.mark.parametrize("step", [None, 3])
def test_the_loss_is_the_bound(batch, fused, target, step):
    """Of the networks' outputs as they are, by the densities of SciPy, number by number."""
    vae = build(chz.replace(CONFIG, target=target))
    loss, metrics = run(vae, fused, batch, None if step is None else jnp.int32(step))
    placed = put(batch, RULES)
    q, p = vae.encode(vae.canvas.from_batch(placed)), vae.prior_distribution(fused)
    mean = np.asarray(vae.decode(q.mean, fused), np.float64)
    deviation = np.exp(float(vae.deviation[...]))
    beta = 0.5 * (1 if step is None else 0.3)
    total, count, squares, divergences = 0.0, 0, 0.0, []
    for example in np.flatnonzero(batch.present[target]):
        values = batch.values[target][example].astype(np.float64)
        if target == "image":
            said, true = mean[example], 2 * values - 1
        else:
            real = batch.mask[target][example]
            said, true = mean[example, : len(real), : values.shape[1], 0][real], values[real]
        total -= scipy.stats.norm.logpdf(true, said, deviation).sum()
        squares += ((true - said) ** 2).sum()
        count += true.size
        (mq, sq), (mp, sp) = (
            [np.asarray(part[example], np.float64) for part in (of.mean, of.deviation)] for of in (q, p)
        )
        kl = np.log(sp / sq) + (sq**2 + (mq - mp) ** 2) / (2 * sp**2) - 0.5
        divergences.append(kl.sum())
        total += beta * np.maximum(kl.sum((0, 1)), 0.2).sum()
    np.testing.assert_allclose(loss.value(), total / count, rtol=1e-4)
    np.testing.assert_allclose(metrics["squared_error"].value(), squares / count, rtol=1e-4)
    np.testing.assert_allclose(metrics["kl"].value(), np.mean(divergences), rtol=1e-4)
    assert float(vae.weight(placed)) == count == float(loss.weight)


def test_divergence_against_an_integral():
    q, p = (0.3, 0.7), (-0.2, 1.4)
    x = np.linspace(-12, 12, 200_001)
    ours, other = scipy.stats.norm(*q), scipy.stats.norm(*p)
    integral = np.trapezoid(ours.pdf(x) * (ours.logpdf(x) - other.logpdf(x)), x)
    ours, other = (Gaussian(*(jnp.full((1,), value) for value in of)) for of in (q, p))
    np.testing.assert_allclose(ours.kl_divergence(other), integral, rtol=1e-5)


def test_a_draw_is_differentiated_by_its_mean_and_deviation():
    """mean + exp(s) noise: 1 by the mean, exp(s) noise by s, the logarithm of the deviation (Kingma & Welling 2014)."""
    numbers = jnp.asarray([[0.3, -1.0, 0.2, -0.7]])

    def total(numbers):
        return (Gaussian.of(numbers).sample(jax.random.key(0)) * jnp.asarray([2.0, 5.0])).sum()

    noise = (Gaussian.of(numbers).sample(jax.random.key(0)) - numbers[:, :2]) / jnp.exp(numbers[:, 2:])
    expected = jnp.concatenate(
        [jnp.asarray([[2.0, 5.0]]), jnp.asarray([[2.0, 5.0]]) * jnp.exp(numbers[:, 2:]) * noise], 1
    )
    np.testing.assert_allclose(jax.grad(total)(numbers), expected, rtol=1e-5)


def test_the_reconstruction_reaches_the_encoder(batch, fused):
    """Through the draw: the divergence weighs nothing here, and the slope is that of finite differences."""
    vae, batch = build(chz.replace(CONFIG, beta=0.0)), put(batch, RULES)

    def loss(kernel):
        other = jax.tree.map(jnp.asarray, vae)
        other.shrink.stem.kernel[...] = kernel
        return other.loss(fused, batch, jax.random.key(0), None)[0].value()

    np.testing.assert_allclose(*slopes(loss, vae.shrink.stem.kernel[...], 1e-2), rtol=0.02)


def test_what_is_absent_changes_nothing(batch, fused):
    """Neither the loss nor any gradient."""
    vae = build(CONFIG)

    def gradients(batch):
        return jax.jit(
            jax.value_and_grad(lambda vae: vae.loss(fused, batch, jax.random.key(0), None)[0].value()),
        )(vae)

    other = dataclasses.replace(batch, values=batch.values | {"image": np.nan_to_num(batch.values["image"], nan=7.0)})
    for first, second in zip(*(jax.tree.leaves(gradients(put(each, RULES))) for each in (batch, other)), strict=True):
        assert np.isfinite(first).all()
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("target", "shape"), [("image", (SIZE, 8, 8, 1)), ("speech", (SIZE, 10, 4))])
def test_predictions_follow_the_condition_and_the_key(fused, target, shape):
    vae = build(chz.replace(CONFIG, target=target))
    predict = jax.jit(lambda fused, key: vae.predict(fused, key)["values"])
    first, second = predict(fused, jax.random.key(0)), predict(fused, jax.random.key(1))
    assert first.shape == shape
    assert np.abs(first - second).max() > 1e-4
    np.testing.assert_array_equal(first, predict(fused, jax.random.key(0)))
    turned = dataclasses.replace(fused, pooled=-fused.pooled)
    assert np.abs(first - predict(turned, jax.random.key(0))).max() > 1e-4
    if target == "image":
        assert 0 <= float(first.min()) <= float(first.max()) <= 1


def test_without_a_condition_the_fused_features_are_not_read(fused):
    vae = build(chz.replace(CONFIG, conditional=False))
    predict = jax.jit(lambda fused: vae.predict(fused, jax.random.key(0))["values"])
    turned = dataclasses.replace(fused, pooled=-fused.pooled)
    np.testing.assert_array_equal(predict(fused), predict(turned))
    # So it can be judged by a model that reads the picture alone.
    assert (CONFIG.hidden_modalities, chz.replace(CONFIG, conditional=False).hidden_modalities) == (("image",), ())


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"latent": 0}, ValueError, "latent=0 must be at least 1"),
        ({"beta": -1.0}, ValueError, "must not be negative"),
        ({"widths": ()}, UserError, "needs a positive number of channels"),
        ({"target": "label"}, UserError, "image, speech, song"),
    ],
)
def test_wrong_values(wrong, error, message):
    with pytest.raises(error, match=message):
        build(chz.replace(CONFIG, **wrong))
