"""Quantizers against loops over vectors, their gradients, the revival of unused codes, and what a tokenizer loses."""

import dataclasses
import itertools

import chz
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.generators import VqVae
from mmjax.generators.codes import Codebook, Fsq
from mmjax.layers.settings import Settings
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import Fused, Tokens
from tests.reference import draw, wide
from tests.small import FEATURES, make_batch, put

RULES = PRESETS["data"]
SMALL = Codebook(size=12, width=3)


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


def build(config):
    return draw(lambda rngs: config.build(RULES, rngs))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def z():
    return jnp.asarray(np.random.default_rng(5).normal(size=(4, 2, 3, 3)), jnp.float32)


def test_a_codebook_takes_the_nearest(z):
    book = build(SMALL)
    found, codes, cost = jax.jit(lambda z: book(z, None))(z)
    table, vectors = unit(wide(book.table)), unit(np.asarray(z, np.float64))
    for place in np.ndindex(4, 2, 3):
        distances = np.square(table - vectors[place]).sum(1)
        assert codes[place] == distances.argmin()
        np.testing.assert_allclose(found[place], table[distances.argmin()], atol=1e-4)
    expected = (1 + 0.25) * np.square(vectors - table[np.asarray(codes)]).mean((1, 2, 3))
    np.testing.assert_allclose(cost, expected, rtol=1e-4)
    np.testing.assert_allclose(book.look_up(codes), found, atol=1e-4)


def test_gradients_pass_straight_through(z):
    """That of the result reaches z as if nothing had happened but its scaling to length one, and no code."""
    book = build(SMALL)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=z.shape), jnp.float32)
    passed, code = jax.grad(lambda z, book: (book(z, None)[0] * weights).sum(), argnums=(0, 1))(z, book)
    length = jnp.linalg.norm(z, axis=-1, keepdims=True)
    expected = jax.grad(lambda z: (z / jnp.sqrt((z**2).sum(-1, keepdims=True)) * weights).sum())(z)
    np.testing.assert_allclose(passed, expected, atol=1e-4)
    assert float(length.min()) > 0
    assert not np.asarray(code.table[...]).any()


def test_codes_are_drawn_to_vectors_and_vectors_a_quarter_as_much_to_codes(z):
    """By |e - sg(z)|^2 + 0.25 |z - sg(e)|^2: each distance has a gradient on one side only."""
    book = build(SMALL)

    def normal(x):
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def cost(table, z):
        return jax.tree.map(lambda _: table, book)(z, None)[2].sum()

    table = book.table[...]
    codes, vectors, entries = book(z, None)[1], normal(z), normal(table)
    by_table, by_z = jax.grad(cost, argnums=(0, 1))(table, z)
    expected = jax.grad(lambda table: jnp.square(normal(table)[codes] - vectors).mean((1, 2, 3)).sum())(table)
    np.testing.assert_allclose(by_table, expected, rtol=1e-3, atol=1e-5)
    expected = jax.grad(lambda z: 0.25 * jnp.square(normal(z) - entries[codes]).mean((1, 2, 3)).sum())(z)
    np.testing.assert_allclose(by_z, expected, rtol=1e-3, atol=1e-5)


def test_only_unused_codes_are_revived_and_toward_the_batch(z):
    """A step against the gradient brings each nearer to some vector, in the end to the batch itself."""
    book = build(chz.replace(SMALL, size=18, commitment=0.0))
    key = jax.random.key(0)

    def cost(table, key):
        with_table = jax.tree.map(lambda _: table, book)
        return with_table(z, key)[2].mean() - with_table(z, None)[2].mean()

    used = np.unique(book(z, None)[1])
    gradient = np.asarray(jax.grad(cost)(book.table[...], key))
    assert not np.any(jax.grad(lambda z: book(z, key)[2].sum() - book(z, None)[2].sum())(z))
    unused = np.setdiff1d(np.arange(book.size), used)
    assert len(unused)
    assert np.abs(gradient[used]).max() < 1e-6
    assert (np.abs(gradient[unused]).max(1) > 1e-4).all()

    def whole(table, key):
        return jax.tree.map(lambda _: table, book)(z, key)[2].mean()

    table, step = book.table[...], jax.jit(jax.grad(whole))
    for index in range(300):
        table = table - 1.0 * step(table, jax.random.fold_in(key, index))
    reached = np.unique(jax.tree.map(lambda _: table, book)(z, None)[1])
    assert len(reached) > len(used)


@pytest.mark.parametrize("levels", [(3, 5), (4, 3, 5), (8, 8, 8)])
def test_finite_scalars_have_their_levels(levels):
    """Every code has its own vector, is found again from it, and numbers far out go to the outermost levels."""
    quantizer = build(Fsq(levels=levels))
    codes = jnp.arange(quantizer.size).reshape(1, 1, -1)
    vectors = np.asarray(quantizer.look_up(codes))[0, 0]
    assert len(np.unique(vectors, axis=0)) == quantizer.size == np.prod(levels)
    values = [np.unique(column).tolist() for column in vectors.T]
    assert values == [[(place - level // 2) / (level // 2) for place in range(level)] for level in levels]
    digits = list(itertools.product(*(range(level) for level in reversed(levels))))
    np.testing.assert_allclose(
        vectors[:, ::-1] * [level // 2 for level in levels[::-1]] + [level // 2 for level in levels[::-1]], digits
    )
    z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, len(levels))) * 3, jnp.float32)
    found, codes, cost = quantizer(z, None)
    np.testing.assert_allclose(found, quantizer.look_up(codes), atol=1e-6)
    assert not cost.any()
    ends, _, _ = quantizer(jnp.full((1, 1, 1, len(levels)), 50.0), None)
    np.testing.assert_allclose(ends[0, 0, 0], [(level - 1 - level // 2) / (level // 2) for level in levels], atol=1e-6)
    gradient = jax.grad(lambda z: quantizer(z, None)[0].sum())(jnp.zeros((1, 1, 1, len(levels))))
    assert (np.asarray(gradient) > 0.3).all()


@pytest.mark.parametrize("target", ["image", "speech"])
@pytest.mark.parametrize("quantizer", [SMALL, Fsq(levels=(3, 4))])
def test_a_tokenizer_keeps_what_its_loss_says(target, quantizer):
    batch = make_batch(size=6)
    batch.present[target][2] = False
    batch.values[target][2] = np.nan
    settings = Settings(width=8, rules=RULES)
    config = VqVae(target=target, quantizer=quantizer, widths=(4,))
    vq = draw(lambda rngs: config.build(FEATURES, settings, rngs))
    placed, nothing = (
        put(batch, RULES),
        Fused(Tokens(jnp.zeros((6, 1, 8)), jnp.ones((6, 1), bool)), jnp.zeros((6, 8)), {}),
    )
    run = jax.jit(lambda vq, batch: (vq.loss(nothing, batch, None, None)[1], vq.encode(batch)))
    metrics, codes = run(vq, placed)
    said = np.asarray(vq.decode(codes), np.float64)
    total = count = 0
    for example in np.flatnonzero(batch.present[target]):
        values, fake = batch.values[target][example], said[example]
        if target == "image":
            # In [0, 1] now, and cut off there.
            inside = (fake > 0) & (fake < 1)
            assert inside.any()
            total += 4 * np.square(fake - values)[inside].sum()
        else:
            inside = np.repeat(batch.mask[target][example][:, None], values.shape[1], 1)
            total += np.square(fake - values)[inside].sum()
        count += inside.sum()
    if target == "speech":
        np.testing.assert_allclose(metrics["squared_error"].value(), total / count, rtol=1e-4)
    counts = np.bincount(np.asarray(codes)[batch.present[target]].ravel(), minlength=vq.quantizer.size)
    np.testing.assert_array_equal(metrics["codebook"].counts, counts)
    shares = counts[counts > 0] / counts.sum()
    figures = metrics["codebook"].figures("codebook")
    assert figures["codebook_usage"] == pytest.approx((counts > 0).mean())
    assert figures["codebook_perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


def test_the_step_before_the_decoder_is_made_of_codes():
    """Two pictures of equal codes are decoded alike."""
    settings = Settings(width=8, rules=RULES)
    config = VqVae(target="image", quantizer=SMALL, widths=(4,))
    vq = draw(lambda rngs: config.build(FEATURES, settings, rngs))
    batch = put(make_batch(), RULES)
    slightly = dataclasses.replace(batch, values=batch.values | {"image": batch.values["image"] * 0.9999})
    first, second = vq.encode(batch), vq.encode(slightly)
    same = (np.asarray(first) == np.asarray(second)).all((1, 2))
    assert same.any()
    np.testing.assert_array_equal(np.asarray(vq.decode(first))[same], np.asarray(vq.decode(second))[same])


@pytest.mark.parametrize("wrong", [{"size": 1}, {"width": 0}, {"commitment": -1.0}])
def test_wrong_codebooks(wrong):
    with pytest.raises(ValueError, match="a codebook needs"):
        Codebook(**wrong)


def test_wrong_levels():
    with pytest.raises(ValueError, match="must each be at least 3"):
        Fsq(levels=(8, 2))
