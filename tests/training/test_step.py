"""One step: the same on every mesh, in parts and as a whole, and harmless where the loss is not finite."""

import dataclasses
import functools

import chz
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from mmjax.encoders import AudioTransformer, ConvNet, Recurrent, TextTransformer, ViT
from mmjax.errors import UserError
from mmjax.fusion import Concat, CrossAttention
from mmjax.generators import TextDecoder, Vae
from mmjax.heads import Classify, Contrast, Regress
from mmjax.layers.tree import named_leaves
from mmjax.model import Model, build_model
from mmjax.optim.optimizers import Lion
from mmjax.optim.schedules import Linear
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS, Rules
from mmjax.training.state import TrainState, init_state
from mmjax.training.step import compute_gradients, train_step
from mmjax.vmap_runs import stack, vmap_runs
from tests.reference import draw
from tests.slow import slow_but
from tests.small import FEATURES, make_batch, put

ALL = Model(
    width=16,
    dtype="bfloat16",
    unroll=False,
    encoders={
        "image": ViT(patch=4, depth=1, heads=2),
        "text": Recurrent(cell="lstm"),
        "speech": AudioTransformer(depth=1, heads=2),
        "song": ConvNet(stem=2, widths=(8, 16), depths=(1, 1), kernel=3),
    },
    fusion=CrossAttention(depth=1, heads=2),
    outputs={
        "label": Classify(target="label"),
        "place": Regress(target="place"),
        "siglip": Contrast(first="image", second="text", size=8, heads=2),
        "infonce": Contrast(first="speech", second="song", kind="infonce", size=8, heads=2),
        "text": TextDecoder(target="text", depth=1, heads=2),
    },
    dropout=0.1,
    modality_dropout=0.2,
    remat="full",
)
SPREAD = Model(
    width=16,
    dtype="float32",
    unroll=False,
    encoders={
        "image": ConvNet(stem=4, widths=(8,), depths=(1,), kernel=3),
        "text": TextTransformer(depth=2, heads=2),
    },
    fusion=CrossAttention(depth=1, heads=2),
    outputs={
        "label": Classify(target="label"),
        "align": Contrast(first="image", second="text", size=8, heads=2),
        "text": TextDecoder(target="text", depth=1, heads=2),
        "picture": Vae(target="image", latent=2, widths=(8,)),
    },
)
TINY = Model(
    width=8,
    dtype="float32",
    encoders={"image": ConvNet(stem=4, widths=(4,), depths=(1,), kernel=3), "speech": Recurrent()},
    fusion=Concat(hidden=8),
    outputs={
        "label": Classify(target="label", class_weights=(1.0, 2.0, 0.5)),
        "place": Regress(target="place", weight=0.3),
    },
)
MESHES = {
    "data": (MeshShape(data=8), PRESETS["data"]),
    "fsdp": (MeshShape(data=1, fsdp=8), PRESETS["fsdp"]),
    "fsdp_tensor": (MeshShape(data=2, fsdp=2, tensor=2), PRESETS["fsdp_tensor"]),
}
ONE = (MeshShape(data=1), PRESETS["data"])
KEY = 7


@functools.cache
def first_step(name: str):
    """The state before the first step, the state after it, its gradients and its metrics, on the mesh of that name."""
    shape, rules = ONE if name == "one" else MESHES[name]
    # With a decay of 0 the trace is the gradient itself.
    optimizer = optax.chain(optax.trace(0.0), optax.adam(1e-3))
    with jax.set_mesh(shape.build()):
        model = draw(lambda rngs: SPREAD.build(FEATURES, rules=rules, rngs=rngs), scale=0.2)
        before = init_state(model, optimizer, ema=False)
        batch = put(make_batch(presence=0.8), rules)
        step = jax.jit(functools.partial(train_step, optimizer=optimizer, rules=rules))
        after, metrics = step(before, batch, jax.random.key(KEY))
    return before, after, after.opt_state[0].trace, metrics


def vector(tree) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("name", slow_but(MESHES, "fsdp_tensor"))
def test_every_mesh_computes_the_same_gradients(name):
    _, expected, reference, expected_metrics = first_step("one")
    _, after, gradients, metrics = first_step(name)
    difference = vector(gradients) - vector(reference)
    assert np.linalg.norm(vector(reference)) > 0
    assert np.linalg.norm(difference) < 1e-5 * np.linalg.norm(vector(reference))
    assert float(metrics["loss"].value()) == pytest.approx(float(expected_metrics["loss"].value()), rel=1e-5)
    for metric, average in expected_metrics.items():
        np.testing.assert_allclose(metrics[metric].value(), average.value(), rtol=1e-4, atol=1e-6, err_msg=metric)
    assert int(after.step) == int(expected.step) == 1


@pytest.mark.parametrize("name", slow_but(MESHES, "fsdp_tensor"))
def test_a_step_returns_the_types_it_was_given(name):
    """Else the second step would be compiled again."""
    before, after, _, _ = first_step(name)
    for (leaf, old), (_, new) in zip(named_leaves(before), named_leaves(after), strict=True):
        assert jax.typeof(new) == jax.typeof(old), leaf


@pytest.mark.parametrize(
    ("name", "query", "down", "table", "conv"),
    [
        pytest.param("data", (None, None, None), (None, None), (None, None), None, marks=pytest.mark.slow),
        pytest.param("fsdp", ("fsdp", None, None), (None, "fsdp"), (None, "fsdp"), "fsdp", marks=pytest.mark.slow),
        ("fsdp_tensor", ("fsdp", "tensor", None), ("tensor", "fsdp"), ("tensor", "fsdp"), "fsdp"),
    ],
)
def test_parameters_and_moments_lie_as_the_rules_say(name, query, down, table, conv):
    _, after, _, _ = first_step(name)
    expected = {
        "encoders/text/stack/blocks/attention/query/kernel": P(None, *query),
        "fusion/stack/blocks/readers/image/block/mlp/down/kernel": P(None, *down),
        "encoders/text/embed/table": P(*table),
        "encoders/image/trunk/reduce/0/kernel": P(None, None, None, conv),
        "encoders/text/norm/gain": P(None),
    }
    adam = after.opt_state[1][0]
    for tree in (after.model, adam.mu, adam.nu):
        leaves = dict(named_leaves(tree))
        assert {path: jax.typeof(leaves[path]).sharding.spec for path in expected} == expected
    kernel = after.model.encoders["text"].stack.blocks.attention.query.kernel[...]
    parts = int(np.prod([jax.typeof(kernel).sharding.mesh.shape[axis] for axis in query if axis]))
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // parts}


def test_everything_fits_a_mesh():
    """All kinds of encoders and heads, dropout, bfloat16, remat and parts: tracing checks their shardings, as types."""
    shape, rules = MESHES["fsdp_tensor"]
    optimizer = optax.adam(1e-3)

    def start(key):
        return init_state(build_model(key, ALL, FEATURES, rules), optimizer, ema=True)

    step = functools.partial(train_step, optimizer=optimizer, rules=rules, accumulate=2, ema=0.9)
    with jax.set_mesh(shape.build()):
        before = jax.eval_shape(start, jax.random.key(0))
        after, _ = jax.eval_shape(step, before, put(make_batch(), rules), jax.random.key(0))
    for (leaf, old), (_, new) in zip(named_leaves(before), named_leaves(after), strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype), leaf
        assert old.sharding in (None, new.sharding), leaf  # None: scalars made from constants


def test_heads_that_the_mesh_does_not_divide():
    config = chz.replace(
        SPREAD, encoders={"text": TextTransformer(depth=1, heads=2)}, outputs={"label": Classify(target="label")}
    )
    with jax.set_mesh(MeshShape(data=2, tensor=4).build()), pytest.raises(UserError) as error:
        jax.eval_shape(lambda key: build_model(key, config, FEATURES, PRESETS["tensor"]), jax.random.key(0))
    assert "mesh.tensor=4 does not divide dimension heads=2" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def two_devices():
    with jax.set_mesh(MeshShape(data=2).build()):
        yield PRESETS["data"]


def tiny(rules: Rules):
    return draw(lambda rngs: TINY.build(FEATURES, rules=rules, rngs=rngs))


@functools.cache
def compiled_gradients(parts, rules):
    return jax.jit(functools.partial(compute_gradients, rules=rules, parts=parts))


def gradients(batch, parts, rules):
    players = (tiny(rules), None)
    (loss, _), metrics, (grads, _) = compiled_gradients(parts, rules)(players, put(batch, rules), jax.random.key(KEY))
    return loss, metrics, grads


def test_parts_add_up_to_the_whole(two_devices):
    """Also where labels are missing unevenly: parts weigh what they hold, and one of them holds no place at all."""
    batch = make_batch(presence=0.6)
    batch.present["place"][[0, 4]] = False
    batch.present["label"][:] = [True, True, False, False, True, False, True, False]
    loss, metrics, whole = gradients(batch, 1, two_devices)
    assert float(metrics["label/loss"].weight) > 0
    part_loss, part_metrics, summed = gradients(batch, 4, two_devices)
    assert float(part_loss) == pytest.approx(float(loss), rel=1e-5)
    assert np.linalg.norm(vector(summed) - vector(whole)) < 1e-5 * np.linalg.norm(vector(whole))
    for name, average in metrics.items():
        np.testing.assert_allclose(part_metrics[name].total, average.total, rtol=1e-4, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(part_metrics[name].weight, average.weight, rtol=1e-6, err_msg=name)
    for (path, ours), (_, theirs) in zip(named_leaves(summed), named_leaves(whole), strict=True):
        assert jax.typeof(ours).sharding == jax.typeof(theirs).sharding, path


def test_parts_draw_each_their_own(two_devices):
    """Two parts of the same examples are not the first of them twice, as what is dropped differs."""
    config = chz.replace(TINY, modality_dropout=0.5)
    model = draw(lambda rngs: config.build(FEATURES, rules=two_devices, rngs=rngs))
    half, key = make_batch(size=4), jax.random.key(KEY)
    whole = jax.tree.map(lambda array: np.repeat(array, 2, 0), half)

    def loss(batch, key, parts):
        compute = jax.jit(functools.partial(compute_gradients, rules=two_devices, parts=parts))
        return float(compute((model, None), put(batch, two_devices), key)[0][0])

    assert abs(loss(whole, key, 2) - loss(half, jax.random.split(key)[0], 1)) > 1e-4


EMA = 0.5


@pytest.fixture(scope="module")
def trainer(two_devices):
    """A fresh state and the compiled step, with an average and Adam."""
    optimizer = optax.adam(0.01)
    step = jax.jit(functools.partial(train_step, optimizer=optimizer, rules=two_devices, ema=EMA))
    state = init_state(tiny(two_devices), optimizer, ema=True)

    def advance(state: TrainState, batch):
        return step(state, put(batch, two_devices), jax.random.key(KEY))

    return state, advance


def spoiled():
    """A batch whose first picture, which is present, is not a number."""
    batch = make_batch()
    image = batch.values["image"].copy()
    image[0, 0, 0] = np.nan
    return dataclasses.replace(batch, values=batch.values | {"image": image})


def identical(first, second):
    for (path, ours), (_, theirs) in zip(named_leaves(first), named_leaves(second), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=path)


def test_a_step_is_the_optimizers(trainer, two_devices):
    state, advance = trainer
    after, metrics = advance(state, make_batch())
    loss, _, grads = gradients(make_batch(), 1, two_devices)
    updates, _ = optax.adam(0.01).update(grads, state.opt_state, state.model)
    expected = optax.apply_updates(state.model, updates)
    np.testing.assert_allclose(vector(after.model), vector(expected), rtol=1e-3, atol=1e-5)
    assert float(metrics["loss"].value()) == pytest.approx(float(loss), rel=1e-5)
    assert float(metrics["gradient_norm"].value()) == pytest.approx(np.linalg.norm(vector(grads)), rel=1e-5)
    assert (int(after.step), int(after.skipped), int(after.skipped_in_a_row)) == (1, 0, 0)


def test_a_loss_that_is_not_finite_changes_nothing(trainer):
    state, advance = trainer
    state, _ = advance(state, make_batch())
    once, metrics = advance(state, spoiled())
    assert not np.isfinite(metrics["loss"].value())
    identical((once.model, once.opt_state, once.ema), (state.model, state.opt_state, state.ema))
    assert (int(once.step), int(once.skipped), int(once.skipped_in_a_row)) == (2, 1, 1)
    twice, metrics = advance(once, spoiled())
    assert (int(twice.step), int(twice.skipped), int(twice.skipped_in_a_row)) == (3, 2, 2)
    assert (float(metrics["skipped"].value()), float(metrics["skipped_in_a_row"].value())) == (2, 2)
    good, _ = advance(twice, make_batch())
    assert (int(good.step), int(good.skipped), int(good.skipped_in_a_row)) == (4, 2, 0)
    assert np.abs(vector(good.model) - vector(twice.model)).max() > 0


def test_the_learning_rate_is_that_of_the_step_whether_or_not_others_were_skipped(two_devices):
    """Lion moves parameters by the learning rate itself."""
    lion = Lion(learning_rate=0.1, schedule=Linear(warmup=0), clip=None)
    optimizer = lion.build(4, tiny(two_devices))
    step = jax.jit(functools.partial(train_step, optimizer=optimizer, rules=two_devices))
    state = init_state(tiny(two_devices), optimizer, ema=False)
    for number, batch in enumerate([make_batch(), spoiled(), spoiled(), make_batch()]):
        before = vector(state.model)
        state, _ = step(state, put(batch, two_devices), jax.random.key(KEY))
        rate = 0 if number in (1, 2) else float(lion.rate(4)(number))
        assert np.abs(vector(state.model) - before).max() == pytest.approx(rate, rel=1e-4)


def test_a_gradient_that_is_not_finite_changes_nothing(two_devices):
    """Though the loss is: the norm of gradients of 1e30 is beyond float32."""
    config = chz.replace(TINY, outputs={"place": Regress(target="place", weight=1e30)})
    model, optimizer = draw(lambda rngs: config.build(FEATURES, rules=two_devices, rngs=rngs)), optax.sgd(1.0)
    step = jax.jit(functools.partial(train_step, optimizer=optimizer, rules=two_devices))
    state = init_state(model, optimizer, ema=False)
    after, metrics = step(state, put(make_batch(), two_devices), jax.random.key(KEY))
    assert np.isfinite(metrics["loss"].value())
    assert int(after.skipped) == 1
    identical(after.model, state.model)


def test_the_average_moves_towards_the_model(trainer):
    """decay = min(ema, (1 + step) / (10 + step)); average <- decay average + (1 - decay) model."""
    state, advance = trainer
    identical(state.ema, state.model)
    expected, seen = vector(state.ema), set()
    for step in range(10):
        state, _ = advance(state, make_batch(seed=step))
        decay = min(EMA, (1 + step) / (10 + step))
        seen.add(decay)
        expected = decay * expected + (1 - decay) * vector(state.model)
    assert EMA in seen
    assert len(seen) > 5
    np.testing.assert_allclose(vector(state.ema), expected, rtol=1e-4, atol=1e-6)


def test_randomness_comes_from_the_runs_key_and_the_step(two_devices):
    """A step's dropout is that of its number, whatever happened before."""
    config = chz.replace(TINY, modality_dropout=0.5)
    model = draw(lambda rngs: config.build(FEATURES, rules=two_devices, rngs=rngs))
    optimizer = optax.sgd(0.0)
    state = init_state(model, optimizer, ema=False)
    step = jax.jit(functools.partial(train_step, optimizer=optimizer, rules=two_devices))
    batch, losses = put(make_batch(), two_devices), []
    for number, key in ((0, 0), (1, 0), (1, 0), (0, 1)):
        now = dataclasses.replace(state, step=jnp.asarray(number, jnp.int32))
        losses.append(float(step(now, batch, jax.random.key(key))[1]["loss"].value()))
    assert losses[1] == losses[2]
    assert len(set(losses)) == 3


def test_a_step_can_be_lowered_from_its_types(two_devices):
    optimizer = optax.adam(0.01)

    def start(key):
        return init_state(TINY.build(FEATURES, rules=two_devices, rngs=nnx.Rngs(key)), optimizer, ema=True)

    state = jax.eval_shape(start, jax.random.key(0))
    step = jax.jit(functools.partial(train_step, optimizer=optimizer, rules=two_devices, ema=EMA), donate_argnums=0)
    lowered = step.lower(state, put(make_batch(), two_devices), jax.random.key(0))
    assert "dot_general" in lowered.as_text()


@pytest.mark.parametrize("count", [1, 2])
def test_a_temperature_above_its_bound_is_clipped_by_an_update(two_devices, count):
    """Also that of each of several runs; what comes from a checkpoint may be above it."""
    encoders = {"image": ViT(patch=4, depth=1, heads=2), "text": TextTransformer(depth=1, heads=2)}
    config = chz.replace(SPREAD, encoders=encoders, outputs={"align": SPREAD.outputs["align"]})
    model, optimizer = draw(lambda rngs: config.build(FEATURES, rules=two_devices, rngs=rngs)), optax.adam(1e-3)
    model.outputs["align"].temperature[...] = jnp.float32(4.7)
    states = [init_state(model, optimizer, ema=True)] * count
    step = vmap_runs(functools.partial(train_step, optimizer=optimizer, rules=two_devices, ema=EMA), count)
    keys = stack([jax.random.key(KEY)] * count)
    after, _ = jax.jit(step)(stack(states), stack([put(make_batch(), two_devices)] * count), keys)
    np.testing.assert_allclose(after.model.outputs["align"].temperature[...], np.log(100), rtol=1e-6)
    assert np.all(np.asarray(after.ema.outputs["align"].temperature[...]) < 4.7)
