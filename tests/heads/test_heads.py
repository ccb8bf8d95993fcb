"""Losses against Optax, scikit-learn, SciPy and loops over pairs; targets that are not there against nothing at all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
import sklearn.metrics
from flax import nnx

from mmjax.errors import UserError
from mmjax.heads import TABLE, Classify, Contrast, Regress
from mmjax.layers.settings import Settings
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import Batch, Fused, Tokens
from tests import reference
from tests.reference import draw, wide
from tests.small import FEATURES, make_batch, put

WIDTH, SIZE = 16, 6
RULES = PRESETS["data"]
SETTINGS = Settings(width=WIDTH, rules=RULES)


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def batch():
    """Six examples; the second and fifth lack each target, the last lacks the text."""
    batch = make_batch(size=SIZE)
    for name, absent in (("label", [1, 4]), ("place", [1, 4]), ("image", [1]), ("text", [4, 5])):
        batch.present[name][absent] = False
    return batch


@pytest.fixture(scope="module")
def fused(batch):
    rng = np.random.default_rng(1)

    def tokens(name, length):
        mask = batch.mask.get(name, np.ones((SIZE, length), bool)) & batch.present[name][:, None]
        values = rng.normal(size=(SIZE, length, WIDTH)).astype(np.float32)
        return Tokens(*jax.device_put((values, mask), RULES.spec("batch")))

    unimodal = {"image": tokens("image", 4), "text": tokens("text", 5)}
    pooled = rng.normal(size=(SIZE, WIDTH)).astype(np.float32)
    return Fused(unimodal["image"], jax.device_put(pooled, RULES.spec("batch")), unimodal)


def build(config):
    return draw(lambda rngs: config.build(FEATURES, SETTINGS, rngs))


def run(head, fused, batch):
    """Loss, its gradients, metrics and predictions, compiled once."""

    def compute(head, fused, batch):
        def loss(head, pooled, values):
            unimodal = {
                name: dataclasses.replace(tokens, values=values[name]) for name, tokens in fused.unimodal.items()
            }
            loss, metrics = head.loss(Fused(fused.tokens, pooled, unimodal), batch, None, None)
            return loss.value(), (loss, metrics)

        values = {name: tokens.values for name, tokens in fused.unimodal.items()}
        gradient = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        (_, (loss, metrics)), gradients = gradient(head, fused.pooled, values)
        return loss, metrics, head.weight(batch), gradients, head.predict(fused, None)

    return jax.jit(compute)(head, fused, put(batch, RULES))


def close(actual, expected, tolerance=2e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def spoil(batch: Batch) -> Batch:
    """The same batch with nonsense in the place of what is absent."""
    values = {}
    for name, array in batch.values.items():
        nonsense = np.nan if array.dtype.kind == "f" else -(2**31)
        there = batch.present[name].reshape(-1, *[1] * (array.ndim - 1))
        values[name] = np.where(there, array, np.asarray(nonsense, array.dtype))
    return dataclasses.replace(batch, values=values)


def same(first, second):
    for ours, theirs in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_array_equal(ours, theirs)


def real_slots(batch, name):
    return batch.mask[name] & batch.present[name][:, None]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_weights", [None, (1.0, 0.5, 3.0)])
def test_classify(batch, fused, smoothing, class_weights):
    head = build(Classify(target="label", smoothing=smoothing, class_weights=class_weights))
    loss, metrics, weight, _, prediction = run(head, fused, batch)
    logits = reference.linear(head.logits, np.asarray(fused.pooled, np.float64))
    there = real_slots(batch, "label")
    logits, truth = logits[there], batch.values["label"][there]
    weights = np.ones(len(truth)) if class_weights is None else np.asarray(class_weights)[truth]
    targets = optax.smooth_labels(jax.nn.one_hot(truth, 3), smoothing)
    losses = np.asarray(optax.softmax_cross_entropy(jnp.asarray(logits, jnp.float32), targets))
    close(loss.value(), np.average(losses, weights=weights))
    close(weight, weights.sum())
    close(loss.weight, weight)
    probabilities = reference.softmax(logits)
    if smoothing == 0:
        close(loss.value(), sklearn.metrics.log_loss(truth, probabilities, sample_weight=weights, labels=[0, 1, 2]))
    close(metrics["accuracy"].value(), sklearn.metrics.accuracy_score(truth, probabilities.argmax(-1)))
    close(np.asarray(prediction["probabilities"])[there], probabilities)


def test_classes_of_weight_zero_are_left_out(batch, fused):
    head = build(Classify(target="label", class_weights=(0.0, 1.0, 1.0)))
    loss, metrics, _, _, _ = run(head, fused, batch)
    counted = real_slots(batch, "label") & (batch.values["label"] > 0)
    assert float(loss.weight) == float(metrics["accuracy"].weight) == counted.sum()


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (40.0, 25.0)])
def test_regress(batch, fused, shift, scale):
    """With a mean and a deviation, predictions are in the target's own units."""
    scaled = {} if scale == 1 else {"mean": (shift,) * 2, "deviation": (scale,) * 2}
    head = build(Regress(target="place", **scaled))
    loss, metrics, weight, _, prediction = run(head, fused, batch)
    both = reference.linear(head.parameters, np.asarray(fused.pooled, np.float64))
    there, truth = real_slots(batch, "place"), batch.values["place"]
    mean, deviation = shift + scale * both[..., 0], scale * (np.log1p(np.exp(both[..., 1])) + 1e-3)
    close(loss.value(), -scipy.stats.norm.logpdf(truth, mean, deviation)[there].mean(), 1e-4)
    close(weight, 2 * there.sum())
    close(loss.weight, weight)
    error = np.abs(truth - mean)[there]
    close(metrics["absolute_error"].value(), error.mean())
    close(metrics["coverage_95"].value(), (error < 1.96 * deviation[there]).mean())
    close(prediction["mean"], mean)
    close(prediction["deviation"], deviation)


def embeddings(head, fused):
    pairs = []
    for side, name in enumerate(head.aligned_modalities):
        tokens = fused.unimodal[name]
        x = reference.pool(head.pools[side], np.asarray(tokens.values, np.float64), np.asarray(tokens.mask))
        x = reference.linear(head.projections[side], x)
        pairs.append(x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-12))
    return pairs


def siglip(first, second, scale, bias):
    """Zhai et al. 2023, algorithm 1: the sum over all pairs over the number of examples."""
    total = 0.0
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            sign = 1 if i == j else -1
            total += np.log1p(np.exp(-sign * (scale * a @ b + bias)))
    return total / len(first)


def infonce(first, second, scale, _):
    """Radford et al. 2021, figure 3: the mean of the cross-entropies of rows and of columns."""
    logits = scale * first @ second.T
    by_row = [-np.log(reference.softmax(row)[i]) for i, row in enumerate(logits)]
    by_column = [-np.log(reference.softmax(column)[i]) for i, column in enumerate(logits.T)]
    return (np.mean(by_row) + np.mean(by_column)) / 2


@pytest.mark.parametrize(("kind", "by_hand"), [("siglip", siglip), ("infonce", infonce)])
def test_contrast(batch, fused, kind, by_hand):
    head = build(Contrast(first="image", second="text", kind=kind, size=8, heads=2))
    head.temperature[...] = head.temperature[...] + 1.5
    loss, metrics, weight, (gradient, _, _), prediction = run(head, fused, batch)
    there = batch.present["image"] & batch.present["text"]
    assert there.sum() == 3
    first, second = embeddings(head, fused)
    scale = np.exp(wide(head.temperature))
    bias = None if head.bias is None else wide(head.bias)
    close(loss.value(), by_hand(first[there], second[there], scale, bias), 1e-4)
    # By finite differences, the temperature's gradient being that by the logarithm of the scale.
    step, pair = 1e-5, (first[there], second[there])
    slope = by_hand(*pair, scale * np.exp(step), bias) - by_hand(*pair, scale * np.exp(-step), bias)
    close(gradient.temperature[...], slope / 2 / step, 1e-4)
    if bias is not None:
        slope = by_hand(*pair, scale, bias + step) - by_hand(*pair, scale, bias - step)
        close(gradient.bias[...], slope / 2 / step, 1e-4)
    assert float(weight) == float(loss.weight) == 3
    nearest = (first[there] @ second[there].T).argmax(1)
    close(metrics["batch_accuracy"].value(), (nearest == np.arange(3)).mean())
    close(prediction["image"], first)
    close(prediction["text"], second)
    assert not np.asarray(prediction["text"])[~batch.present["text"]].any()


def test_temperature_is_bounded(batch, fused):
    head = build(Contrast(first="image", second="text", kind="infonce", size=8, heads=2))
    losses = []
    for logarithm in (np.log(100), 1000.0):
        head.temperature[...] = jnp.asarray(logarithm, jnp.float32)
        losses.append(float(run(head, fused, batch)[0].value()))
    assert losses[0] == losses[1]
    assert np.isfinite(losses[0])


@pytest.mark.parametrize("temperature", [np.log(100), 4.7])
def test_the_temperature_has_a_gradient_at_its_bound_and_beyond(batch, fused, temperature):
    """That of the loss at the bound, by finite differences."""
    head = build(Contrast(first="image", second="text", kind="infonce", size=8, heads=2))
    head.temperature[...] = jnp.asarray(temperature, jnp.float32)
    _, _, _, (gradient, _, _), _ = run(head, fused, batch)
    there = batch.present["image"] & batch.present["text"]
    first, second = (side[there] for side in embeddings(head, fused))
    higher, lower = (infonce(first, second, 100 * np.exp(step), None) for step in (1e-5, -1e-5))
    assert abs(higher - lower) > 1e-5
    close(gradient.temperature[...], (higher - lower) / 2e-5, 1e-3)


@pytest.mark.parametrize(
    "config",
    [
        Classify(target="label", class_weights=(1.0, 0.5, 3.0)),
        Regress(target="place"),
        Contrast(first="image", second="text", size=8, heads=2),
        Contrast(first="image", second="text", kind="infonce", size=8, heads=2),
    ],
    ids=lambda config: f"{type(config).__name__}",
)
def test_absent_targets_do_nothing(batch, fused, config):
    """Not to the loss, nor its gradients, and where nothing is present the loss is 0 and so are its gradients."""
    head = build(config)
    same(run(head, fused, batch)[:4], run(head, fused, spoil(batch))[:4])
    nothing = spoil(dataclasses.replace(batch, present={name: np.zeros(SIZE, bool) for name in batch.present}))
    loss, _, weight, gradients, _ = run(head, fused, nothing)
    assert float(loss.value()) == float(weight) == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_losses_are_float32(batch, fused):
    low = dataclasses.replace(fused, pooled=fused.pooled.astype(jnp.bfloat16))
    for config, tolerance in ((Classify(target="label"), 0.05), (Regress(target="place"), 0.1)):
        head = build(config)
        loss, _, _, _, prediction = run(head, low, batch)
        assert {leaf.dtype for leaf in jax.tree.leaves((loss, prediction))} == {jnp.dtype("float32")}
        close(loss.value(), run(head, fused, batch)[0].value(), tolerance)


def test_the_table_has_every_head():
    assert {"Classify": Classify, "Regress": Regress, "Contrast": Contrast}.items() <= TABLE.items()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (Classify(target="colour"), "Classify.target=colour is not one of the possible features: label"),
        (Classify(target="place"), "Classify.target=place"),
        (Classify(target="label", class_weights=(1.0,)), "needs 3 non-negative numbers"),
        (Classify(target="label", class_weights=(1.0, -1.0, 1.0)), "needs 3 non-negative numbers"),
        (Regress(target="label"), "Regress.target=label is not one of the possible features: place"),
        (Contrast(first="image", second="smell"), "Contrast.second=smell"),
        (Contrast(first="label", second="text"), "Contrast.first=label is not one of the possible features: image"),
        (Contrast(first="image", second="text", heads=3), "Contrast.heads=3 does not divide model.width=16"),
    ],
)
def test_what_cannot_be_built(config, says):
    with pytest.raises(UserError) as error:
        config.build(FEATURES, SETTINGS, nnx.Rngs(0))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_smoothing_is_a_share():
    with pytest.raises(ValueError, match="must lie in"):
        Classify(target="label", smoothing=1.0)
