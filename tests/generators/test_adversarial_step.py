"""Two players in one step: whose gradient is whose, one forward pass, every mesh, every dtype."""

import dataclasses
import functools
from types import SimpleNamespace

import chz
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mmjax.encoders import Recurrent, TextTransformer, ViT
from mmjax.fusion import Concat, SingleStream
from mmjax.generators import Gan, VaeGan, VqGan
from mmjax.generators.adversary import Adversary, Hinge, NonSaturating
from mmjax.generators.codes import Codebook
from mmjax.generators.critics import PatchCritic
from mmjax.generators.perceptual import Perceptual
from mmjax.hardware.flops import count_flops, step_flops
from mmjax.layers.settings import Settings
from mmjax.layers.tree import named_leaves
from mmjax.model import Model, build_critics, build_model
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.training.state import init_state
from mmjax.training.step import compute_gradients, train_step
from mmjax.training.train_program import TrainProgram
from mmjax.types import Fused, Tokens
from tests.golden import check_collectives
from tests.reference import draw
from tests.slow import slow_but
from tests.small import FEATURES, make_batch, put

RULES = PRESETS["data"]
CRITIC = PatchCritic(widths=(4, 8))
ADVERSARY = Adversary(critic=CRITIC)
PLAIN = chz.replace(ADVERSARY, augment=False)
MODEL = Model(
    width=16,
    dtype="float32",
    encoders={"text": TextTransformer(depth=1, heads=2)},
    fusion=SingleStream(depth=1, heads=2),
    outputs={
        "image": Gan(target="image", noise=3, depth=1, heads=2, widths=(4, 8), adversary=ADVERSARY),
        "speech": VaeGan(
            target="speech",
            latent=2,
            widths=(4,),
            adversary=chz.replace(ADVERSARY, adaptive=True, feature_matching=0.5, lecam=0.1, loss=Hinge()),
            perceptual=Perceptual(stem=2, widths=(4,), depths=(1,), kernel=3),
        ),
        "codes": VqGan(
            target="image",
            quantizer=Codebook(size=8, width=4),
            widths=(4,),
            adversary=chz.replace(ADVERSARY, critic=chz.replace(CRITIC, conditional=False), loss=NonSaturating()),
        ),
    },
)


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


def test_a_gan_counts_its_squared_error_as_it_is_told():
    config = chz.replace(MODEL.outputs["image"], reconstruction=0.3)
    gan = draw(lambda rngs: config.build(FEATURES, Settings(width=16, rules=RULES), rngs))
    values, mask, pooled = jax.device_put(
        (np.ones((8, 2, 16), np.float32), np.ones((8, 2), bool), np.ones((8, 16), np.float32)), RULES.spec("batch")
    )
    fused = Fused(Tokens(values, mask), pooled, {})
    loss, metrics = jax.jit(lambda batch: gan.loss(fused, batch, jax.random.key(0), None))(put(make_batch(), RULES))
    np.testing.assert_allclose(loss.value(), 0.3 * metrics["squared_error"].value(), rtol=1e-5)


@functools.cache
def start(name):
    shape, rules = MESHES[name]
    with jax.set_mesh(shape.build()):
        model = draw(lambda rngs: MODEL.build(FEATURES, rules=rules, rngs=rngs), scale=0.2)
        critics = draw(lambda rngs: MODEL.build_critics(FEATURES, rules=rules, rngs=rngs), seed=1, scale=0.2)
    return model, critics


MESHES = {
    "one": (MeshShape(data=1), PRESETS["data"]),
    "data": (MeshShape(data=8), PRESETS["data"]),
    "fsdp_tensor": (MeshShape(data=2, fsdp=2, tensor=2), PRESETS["fsdp_tensor"]),
}


@functools.cache
def both(name):
    """Losses, metrics and gradients of both players on the mesh of that name."""
    shape, rules = MESHES[name]
    players = start(name)
    with jax.set_mesh(shape.build()):
        compute = jax.jit(functools.partial(compute_gradients, rules=rules, parts=1))
        given = (players, put(make_batch(presence=0.8), rules), jax.random.key(7))
        compiled = compute.lower(*given, step=jnp.int32(3)).compile()
        return *compiled(*given, step=jnp.int32(3)), compiled.as_text()


def vector(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("name", slow_but([name for name in MESHES if name != "one"], "fsdp_tensor"))
def test_every_mesh_computes_the_gradients_of_both(name):
    losses, metrics, gradients, _ = both("one")
    other_losses, other_metrics, other_gradients, program = both(name)
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    for ours, theirs in zip(gradients, other_gradients, strict=True):
        assert np.linalg.norm(vector(ours)) > 0
        assert np.linalg.norm(vector(theirs) - vector(ours)) < 1e-5 * np.linalg.norm(vector(ours))
    for metric, average in metrics.items():
        np.testing.assert_allclose(
            jax.tree.leaves(other_metrics[metric]), jax.tree.leaves(average), rtol=1e-4, atol=1e-5, err_msg=metric
        )
    check_collectives(f"adversaries_{name}", program)


def test_each_players_gradient_is_of_its_own_loss():
    """As two separate backward passes with the other player held still give them."""
    model, critics = start("one")
    batch, key = put(make_batch(presence=0.8), RULES), jax.random.key(7)
    _, _, (of_model, of_critics), _ = both("one")

    @jax.jit
    def apart(model, critics):
        def loss(model, critics, index):
            return model.adversarial_loss(critics, batch, key, None, jnp.int32(3))[index]

        return jax.grad(loss)(model, critics, 0), jax.grad(loss, 1)(model, critics, 1)

    for ours, theirs in zip((of_model, of_critics), apart(model, critics), strict=True):
        np.testing.assert_allclose(vector(ours), vector(theirs), rtol=1e-4, atol=1e-6)
    judges = [name for name, _ in named_leaves(model) if "/judge/" in name]
    assert judges
    for name, gradient in named_leaves(of_model):
        if "/judge/" in name:
            assert not np.any(gradient), name


def test_one_forward_pass_serves_both():
    """The step of both takes the FLOPs of each by itself less those of the part of the model that both need."""
    model, critics = start("one")
    batch, key = put(make_batch(), RULES), jax.random.key(7)

    def loss(model, critics, *parts):
        losses = model.adversarial_loss(critics, batch, key, None, jnp.int32(3))
        return sum(losses[index] for index in parts)

    def forward(*parts):
        return count_flops(lambda model, critics: loss(model, critics, *parts), model, critics)

    def step(players, *parts):
        return count_flops(lambda model, critics: jax.grad(loss, players)(model, critics, *parts), model, critics)

    shared = forward(0) + forward(1) - forward(0, 1)
    assert shared > 0
    assert step((0, 1), 0, 1) == pytest.approx(step(0, 0) + step(1, 1) - shared, abs=0.01 * shared)


@pytest.mark.parametrize("dtype", slow_but(["float32", "bfloat16"], "float32"))
def test_both_players_learn_and_nothing_learns_when_one_is_not_finite(dtype):
    config = chz.replace(MODEL, dtype=dtype, fusion=Concat(), outputs={"image": MODEL.outputs["image"]})
    optimizer, critic_optimizer = optax.adam(1e-3), optax.adam(1e-3)

    @jax.jit
    def begin(key):
        model, critics = (make(key, config, FEATURES, RULES) for make in (build_model, build_critics))
        return init_state(model, optimizer, True, critics, critic_optimizer)

    step = jax.jit(
        functools.partial(
            train_step, optimizer=optimizer, critic_optimizer=critic_optimizer, rules=RULES, accumulate=2, ema=0.5
        ),
    )
    state, batch = begin(jax.random.key(0)), put(make_batch(), RULES)
    after, metrics = step(state, batch, jax.random.key(1))
    for player in ("model", "critics"):
        before, now = vector(getattr(state, player)), vector(getattr(after, player))
        assert np.isfinite(now).all()
        assert np.abs(now - before).max() > 0
    for (name, old), (_, new) in zip(named_leaves(state), named_leaves(after), strict=True):
        assert jax.typeof(new) == jax.typeof(old), name
    assert float(metrics["critic_gradient_norm"].value()) > 0
    assert metrics["image/true_score"].total.dtype == jnp.float32
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, after.critics)
    skipped, metrics = step(dataclasses.replace(after, critics=broken), batch, jax.random.key(1))
    assert int(skipped.skipped) == 1
    np.testing.assert_array_equal(vector(skipped.model), vector(after.model))
    np.testing.assert_array_equal(vector(skipped.critic_opt_state), vector(after.critic_opt_state))


def test_no_key_is_used_by_both(monkeypatch):
    """Neither one that parameters are drawn from nor one that such keys are made from."""
    config = chz.replace(MODEL, outputs={"image": MODEL.outputs["image"]})
    found = []

    def note(key):
        jax.debug.callback(lambda data: found.append(tuple(data.tolist())), jax.random.key_data(key))
        return key

    draw_key, begin = nnx.RngStream.__call__, nnx.Rngs.__init__
    monkeypatch.setattr(nnx.RngStream, "__call__", lambda stream: note(draw_key(stream)))
    monkeypatch.setattr(nnx.Rngs, "__init__", lambda rngs, key: begin(rngs, note(key)))

    def keys_of(make):
        found.clear()

        @jax.jit
        def only_keys(key):
            make(key, config, FEATURES, RULES)

        only_keys(jax.random.key(0))
        jax.effects_barrier()
        return set(found)

    of_model, of_critics = keys_of(build_model), keys_of(build_critics)
    assert len(of_model) > 20
    assert len(of_critics) > 10
    assert not of_model & of_critics


@pytest.mark.parametrize("kind", [VaeGan, VqGan])
def test_a_critics_condition_does_not_hold_what_it_judges(kind):
    """Also where the output itself does not read the summary."""
    change = {"conditional": False, "latent": 2} if kind is VaeGan else {}
    output = kind(target="image", widths=(4,), adversary=ADVERSARY, **change)
    encoders = {"image": ViT(patch=4, depth=1, heads=2), "text": Recurrent()}
    config = chz.replace(MODEL, encoders=encoders, fusion=Concat(), outputs={"image": output})
    model = draw(lambda rngs: config.build(FEATURES, rules=RULES, rngs=rngs))

    class Spy:
        def losses(self, output, condition, key, step):
            self.condition = condition
            return *output.loss()[:1] * 2, {}

    @jax.jit
    def condition(batch):
        spy = Spy()
        model.adversarial_loss({"image": spy}, batch)
        return spy.condition

    first, second = make_batch(seed=0), make_batch(seed=1)
    seen = [
        condition(put(dataclasses.replace(first, values=first.values | {name: second.values[name]}), RULES))
        for name in ("song", "image", "text")
    ]
    np.testing.assert_array_equal(seen[1], seen[0])
    assert np.abs(np.asarray(seen[2]) - seen[0]).max() > 0


@pytest.mark.parametrize(("penalty", "passes"), [(0.0, 2), (1.0, 6)])
def test_a_steps_flops_count_the_critics(penalty, passes):
    """Three times its passes over true and made examples, and over both and back again where slopes are penalised."""
    output = chz.replace(MODEL.outputs["image"], adversary=chz.replace(PLAIN, gradient_penalty=penalty))
    config = chz.replace(MODEL, outputs={"image": output})
    key, batch = jax.random.key(0), put(make_batch(), RULES)
    model, critics = (
        jax.eval_shape(functools.partial(make, model=config, features=FEATURES, rules=RULES), key)
        for make in (build_model, build_critics)
    )
    program = SimpleNamespace(abstract_state=SimpleNamespace(model=model, critics=critics), batch_shapes=lambda: batch)
    x, condition = batch.values["image"], jnp.zeros((8, 16))
    once = count_flops(lambda critic, x: critic(x, condition), critics["image"].critic, x)
    assert once > 0
    added = TrainProgram.model_flops.func(program) - step_flops(model, batch)
    assert added == pytest.approx(3 * passes * once, rel=0.05)


def test_an_evaluation_needs_no_critic():
    model, _ = start("one")
    loss, metrics = jax.jit(lambda model, batch: model.loss(batch))(model, put(make_batch(), RULES))
    assert np.isfinite(float(loss))
    assert "image/squared_error" in metrics
    assert not any("score" in name for name in metrics)
