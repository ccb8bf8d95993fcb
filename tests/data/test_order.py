"""The order of a mixture: exact shares, random access, limits and stages, against a reference that counts."""

import random
import time
import tracemalloc
from fractions import Fraction

import pytest

from mmjax.data.batching.order import LONGEST_PERIOD, MixtureOrder, Shares, ShuffledEpochs, integer_weights
from mmjax.errors import UserError

# Of every hundred random mixtures with stages, fewer than one is farther away soon after a stage begins.
SEEDS = range(10)


def random_mixture(seed, stages=True, limited=False):
    """Sizes, shares and limits of 2 to 8 sources, whose weights change up to three times."""
    rng = random.Random(seed)
    names = [f"source_{place}" for place in range(rng.randint(2, 8))]
    sizes = {name: rng.randint(1, 60) for name in names}
    starts = [0, *sorted(rng.sample(range(8, 320, 8), rng.randint(1, 3)))] if stages else [0]
    shares = []
    for start in starts:
        chosen = [name for name in names if rng.random() < 0.8] or names
        shares.append(Shares(start, {name: Fraction(rng.randint(1, 40), 10) for name in chosen}))
    limits = {name: rng.randint(1, 80) for name in names if limited and rng.random() < 0.4}
    return sizes, shares, limits


def deviations(order, sizes, shares, limits, length):
    """How far the farthest source is from its share after 1, 2, ... examples, counted one by one."""
    owed, counts, found = dict.fromkeys(sizes, Fraction(0)), dict.fromkeys(sizes, 0), []
    for position in range(length):
        assert order.counts(position) == counts
        weights = next(share.weights for share in reversed(shares) if share.start <= position)
        left = {name: weight for name, weight in weights.items() if counts[name] < limits.get(name, length)}
        if not left:
            assert order.end == position
            break
        name, before = order.place(position)
        assert before == counts[name]
        assert left[name] > 0
        counts[name] += 1
        for each, weight in left.items():
            owed[each] += weight / sum(left.values())
        found.append(max(abs(owed[each] - counts[each]) for each in sizes))
    return found


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("limited", [False, True])
def test_every_prefix_is_within_one_of_exact_shares(seed, limited):
    sizes, shares, limits = random_mixture(seed, limited=limited)
    found = deviations(MixtureOrder(sizes, shares, limits, 0), sizes, shares, limits, 500)
    assert max(found) <= 1


@pytest.mark.parametrize("seed", SEEDS)
def test_without_stages_the_bound_of_the_theorem_holds(seed):
    sizes, shares, _ = random_mixture(100 + seed, stages=False)
    found = deviations(MixtureOrder(sizes, shares, {}, 0), sizes, shares, {}, 600)
    assert max(found) <= 1 - Fraction(1, max(2, 2 * len(shares[0].weights) - 2))


@pytest.mark.parametrize("weights", [(3, 1, 3, 12, 12, 5, 1, 12), (12, 2, 1, 12, 1, 1, 12), (7, 2, 11, 11, 7, 11, 2)])
def test_the_bound_holds_where_drawing_what_is_owed_most_exceeds_one(weights):
    shares = [Shares(0, {f"source_{place}": Fraction(weight) for place, weight in enumerate(weights)})]
    sizes = dict.fromkeys(shares[0].weights, 10)
    found = deviations(MixtureOrder(sizes, shares, {}, 0), sizes, shares, {}, 2 * sum(weights))
    assert max(found) <= 1 - Fraction(1, 2 * len(weights) - 2)


def test_random_access_is_sequential_reading():
    for seed in SEEDS:
        sizes, shares, limits = random_mixture(seed, limited=True)
        order = MixtureOrder(sizes, shares, limits, seed)
        length = order.end or 600
        whole = [order[position] for position in range(length)]
        places = random.Random(seed).sample(range(length), length)
        other = MixtureOrder(sizes, shares, limits, seed)
        assert {place: other[place] for place in places} == dict(enumerate(whole))


def test_far_positions_take_no_longer_and_no_memory():
    sizes = {f"source_{place:02d}": 1000 + place for place in range(35)}
    weights = {name: Fraction(place + 1) for place, name in enumerate(sizes)}
    order = MixtureOrder(sizes, [Shares(0, weights), Shares(10**6, dict(reversed(weights.items())))], {}, 0)
    assert order[5] >= 0
    tracemalloc.start()
    start = time.process_time()
    for position in range(10**9, 10**9 + 50):
        name, before = order.place(position)
        assert order.counts(position)[name] == before
        assert 0 <= order[position] < sum(sizes.values())
    assert time.process_time() - start < 5
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    exact = {name: 10**9 * weight / sum(weights.values()) for name, weight in weights.items()}
    counts = order.counts(10**9)
    assert sum(counts.values()) == 10**9
    assert max(abs(counts[name] - exact[name]) for name in sizes) <= 1


def test_what_comes_before_a_stage_does_not_depend_on_it():
    """Even where the stage brings a source of its own, in the midst of the others."""
    sizes, weights = {"a": 20, "c": 30}, {"a": Fraction(2), "c": Fraction(1)}
    plain = MixtureOrder(sizes, [Shares(0, weights)], {}, 3)
    more = {"a": 20, "b": 11, "c": 30}
    staged = MixtureOrder(more, [Shares(0, weights), Shares(40, {"b": Fraction(1), "c": Fraction(1)})], {}, 3)
    assert [plain.place(position) for position in range(40)] == [staged.place(position) for position in range(40)]
    skipped = [index - 11 if index >= 31 else index for index in map(staged.__getitem__, range(40))]
    assert skipped == [plain[position] for position in range(40)]
    after = [staged.place(position)[0] for position in range(40, 60)]
    assert after.count("b") == 10
    assert "a" not in after


def test_the_order_does_not_depend_on_how_sources_are_listed():
    sizes, weights = {"a": 20, "b": 30, "c": 5}, dict.fromkeys("abc", Fraction(1))
    one = MixtureOrder(sizes, [Shares(0, weights)], {}, 3)
    other = MixtureOrder(dict(reversed(sizes.items())), [Shares(0, weights)], {}, 3)
    assert [one.place(position) for position in range(99)] == [other.place(position) for position in range(99)]


def test_each_epoch_of_a_source_is_a_permutation_of_its_own():
    order = MixtureOrder({"a": 7, "b": 9}, [Shares(0, {"a": Fraction(3), "b": Fraction("0.5")})], {}, 0)
    indices = [order[position] for position in range(350)]
    for name, members in {"a": range(7), "b": range(7, 16)}.items():
        read = [index for index in indices if index in members]
        epochs = [read[start : start + len(members)] for start in range(0, len(read), len(members))]
        assert len(epochs) > 4
        assert all(sorted(epoch) == [*members] for epoch in epochs[:-1])
        assert len({tuple(epoch) for epoch in epochs[:-1]}) > 1
        expected = ShuffledEpochs(len(members), 0, name)
        assert read == [members[expected[position]] for position in range(len(read))]


def test_a_limit_ends_a_source_and_the_others_share_its_weight():
    weights = {"a": Fraction(2), "b": Fraction(1), "c": Fraction(1)}
    order = MixtureOrder(dict.fromkeys("abc", 10), [Shares(0, weights)], {"a": 15, "b": 20}, 0)
    names = [order.place(position)[0] for position in range(200)]
    last = {name: max(place for place, each in enumerate(names) if each == name) for name in "ab"}
    assert (names.count("a"), names.count("b")) == (15, 20)
    assert abs(last["a"] - 30) <= 2
    both = names[last["a"] + 1 : last["b"]]
    assert abs(both.count("b") - both.count("c")) <= 2
    assert set(names[last["b"] + 1 :]) == {"c"}
    assert order.end is None
    assert order.metrics(200)["a/epochs"] == 1.5


def test_the_end_of_all_sources_is_one_sentence():
    order = MixtureOrder({"a": 10, "b": 10}, [Shares(0, {"a": Fraction(1), "b": Fraction(3)})], {"a": 5, "b": 20}, 0)
    assert order.end == 25
    assert order.counts(25) == {"a": 5, "b": 20}
    with pytest.raises(
        UserError, match=r"^every source with a weight has reached its limit of epochs after 25 examples; "
    ):
        _ = order[25]


def test_decimals_are_exact_and_long_periods_rounded():
    assert integer_weights([Fraction("0.1"), Fraction("0.2"), Fraction("0.7")]) == [1, 2, 7]
    assert integer_weights([Fraction(1, 3), Fraction(0), Fraction(1, 6)]) == [2, 0, 1]
    assert integer_weights([Fraction(16383), Fraction(1)]) == [16383, 1]
    for seed in SEEDS:
        rng = random.Random(seed)
        weights = [Fraction(rng.randint(1, 10**9)) for _ in range(35)]
        rounded = integer_weights(weights)
        share = [weight * LONGEST_PERIOD / sum(weights) for weight in weights]
        assert sum(rounded) == LONGEST_PERIOD
        assert max(abs(one - other) for one, other in zip(rounded, share, strict=True)) < 1
    rare = integer_weights([Fraction(10**9), Fraction(1), Fraction(10**9 + 7)])
    assert (rare[1], sum(rare)) == (1, LONGEST_PERIOD)
