"""The order of training examples: the index at each position, a function of the seed."""

import bisect
import itertools
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Integer

from mmjax.errors import UserError

LONGEST_PERIOD = 2**14
"""Weights are rounded where it takes more examples than this until all shares are whole numbers."""


@runtime_checkable
class Order(Protocol):
    """The index of the example at each position of the training."""

    def __getitem__(self, position: int) -> int: ...

    def metrics(self, position: int) -> dict[str, float]:
        """What is logged of the order when the positions before this one were read."""
        ...


class ShuffledEpochs:
    """Every epoch is a new permutation of all examples, in constant memory."""

    def __init__(self, count: int, seed: int, name: str = "order"):
        """`name` separates the permutations of several sources under one seed."""
        import grain

        # Grain takes a 32-bit seed and adds the epoch to it; hashed, runs of neighbouring seeds do not share epochs.
        grain_seed = int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])
        self._order = grain.MapDataset.range(count).shuffle(seed=grain_seed).repeat()

    def __getitem__(self, position: int) -> int:
        return int(self._order[position])

    def metrics(self, position: int) -> dict[str, float]:
        return {}


class Shares(NamedTuple):
    """The weights of sources from a position on; a source that is left out has none."""

    start: int
    weights: Mapping[str, Fraction]


class MixtureOrder:
    """Several sources by weights that change at given positions, each in its own permutation per epoch.

    The sources' examples are numbered one source after the other. After any number of examples each source has had
    within 1 of its share, which is the sum of its weights so far: at most 1 - 1 / (2 K - 2) away with K sources
    (Tijdeman 1980, The chairman assignment problem), as long as weights do not change. What comes before a change does
    not depend on it, so that soon after one the distance can exceed 1. It did in 21 of 4,000 random mixtures of 2 to 8
    sources with 2 to 4 stages, in 50 of 2,000 where some had limits, too, and was 1.23 at most; in none of 100 with 35
    sources.

    Weights are exact where their common period is at most `LONGEST_PERIOD` examples (see `integer_weights`). What is
    kept is a table per change of weights, however far the position.
    """

    def __init__(self, sizes: Mapping[str, int], shares: Sequence[Shares], limits: Mapping[str, int], seed: int):
        """`limits` are the examples after which sources give no more; the others then share their weights.

        `shares` begin at position 0, and give weight to sources in `sizes` only.
        """
        self._sizes = dict(sizes)
        # By name, so that nothing depends on how a configuration lists its sources.
        self._names = sorted(sizes)
        starts = itertools.accumulate(sizes.values(), initial=0)
        self._starts = dict(zip(sizes, starts, strict=False))
        self._orders = {name: ShuffledEpochs(size, seed, name) for name, size in sizes.items()}
        self._segments, self.end = self._plan(shares, limits)

    def _plan(self, shares: Sequence[Shares], limits: Mapping[str, int]) -> tuple[list["_Segment"], int | None]:
        """The segments of equal weights, and the position at which no source is left (None: never)."""
        segments: list[_Segment] = []
        counts, owed, position = np.zeros(len(self._names), np.int64), [Fraction(0)] * len(self._names), 0
        for stage, following in itertools.zip_longest(shares, shares[1:]):
            stop = None if following is None else following.start
            while stop is None or position < stop:
                left = [limits[name] - count if name in limits else None for name, count in self._each(counts)]
                weights = [
                    stage.weights.get(name, Fraction(0)) if rest != 0 else Fraction(0)
                    for name, rest in zip(self._names, left, strict=True)
                ]
                if not any(weights):
                    return segments, position
                room = None if stop is None else stop - position
                segments.append(segment := _Segment(position, counts, weights, owed, left, room))
                if segment.length is None:
                    return segments, None
                counts, owed, position = segment.counts(segment.length), segment.owed, position + segment.length
        raise ValueError("there must be shares from position 0 on")

    def _each(self, counts: Int[np.ndarray, "K"]) -> Iterable[tuple[str, int]]:
        return zip(self._names, counts.tolist(), strict=True)

    def _segment(self, position: int) -> "_Segment":
        if self.end is not None and position >= self.end:
            raise UserError(
                f"every source with a weight has reached its limit of epochs after {self.end:,} examples; raise "
                "data.source.sources.NAME.epochs of one, or train for fewer steps"
            )
        return self._segments[bisect.bisect_right(self._segments, position, key=lambda each: each.start) - 1]

    def place(self, position: int) -> tuple[str, int]:
        """The source at a position, and how many of its examples came before."""
        segment = self._segment(position)
        source, before = segment.place(position - segment.start)
        return self._names[source], before

    def __getitem__(self, position: int) -> int:
        name, before = self.place(position)
        return self._starts[name] + self._orders[name][before]

    def counts(self, position: int) -> dict[str, int]:
        """How many examples of each source come before a position."""
        if not position:
            return dict.fromkeys(self._names, 0)
        segment = self._segment(position - 1)
        return dict(self._each(segment.counts(position - segment.start)))

    def metrics(self, position: int) -> dict[str, float]:
        """The examples and the epochs read of each source."""
        counts = self.counts(position)
        examples = {f"{name}/examples": float(counts[name]) for name in self._sizes}
        return examples | {f"{name}/epochs": counts[name] / size for name, size in self._sizes.items()}


class _Segment:
    """Positions with equal weights: a table of sources whose last `period` rows are repeated."""

    def __init__(
        self,
        start: int,
        before: Int[np.ndarray, "K"],
        weights: Sequence[Fraction],
        owed: Sequence[Fraction],
        left: Sequence[int | None],
        room: int | None,
    ):
        """It ends after `room` examples, or where a source has given all that it has left (None: never).

        `before` are the examples of each source before `start`, and `owed` what is missing to its share of them.
        """
        self.start, self._before = start, before
        whole = integer_weights(weights)
        table, self._period = _schedule(whole, owed, left, room)
        self._sources, self._first = np.array(table, np.uint16), len(table) - self._period
        self._transient = self._count(0, self._first)
        self._repeated = self._count(self._first, len(table))
        # Of each row, how many of the same source are above it in its part of the table.
        parts = np.split(self._sources, [self._first])
        self._ranks = np.concatenate([_ranks(part) for part in parts])
        ends = [room, *map(self._end, range(len(before)), left)] if self._period else [len(table)]
        self.length = min((end for end in ends if end is not None), default=None)
        if self.length is not None:
            given = (self.counts(self.length) - before).tolist()
            shares = [Fraction(self.length * weight, sum(whole)) for weight in whole]
            self.owed = [rest + share - count for rest, share, count in zip(owed, shares, given, strict=True)]

    def _count(self, first: int, last: int) -> Int[np.ndarray, "K"]:
        return np.bincount(self._sources[first:last], minlength=len(self._before))

    def _end(self, source: int, left: int | None) -> int | None:
        """How many examples there are until a source has given all that it has left; None: endlessly many."""
        if left is None or not self._repeated[source]:
            return None
        rounds, rest = divmod(left - 1 - int(self._transient[source]), int(self._repeated[source]))
        row = np.flatnonzero(self._sources[self._first :] == source)[rest]
        return self._first + rounds * self._period + int(row) + 1

    def _row(self, offset: int) -> tuple[int, int]:
        """How often the repeated rows are complete before an offset from the start, and the row there."""
        if offset < self._first or not self._period:
            return 0, offset
        rounds, rest = divmod(offset - self._first, self._period)
        return rounds, self._first + rest

    def place(self, offset: int) -> tuple[int, int]:
        """The source at an offset from the start, and how many of its examples come before, in all."""
        rounds, row = self._row(offset)
        source = int(self._sources[row])
        earlier = self._before[source] + rounds * self._repeated[source] + self._ranks[row]
        return source, int(earlier + (self._transient[source] if row >= self._first else 0))

    def counts(self, offset: int) -> Int[np.ndarray, "K"]:
        """How many examples of each source come before an offset, in all."""
        rounds, row = self._row(offset)
        return self._before + rounds * self._repeated + self._count(0, row)


def integer_weights(weights: Sequence[Fraction]) -> list[int]:
    """The smallest whole numbers in proportion to the weights; their sum is the period of the order.

    Where it would be more than `LONGEST_PERIOD`, weights are rounded to so many parts: those with the largest
    remainders up, and each positive one to 1 at least.
    """
    total = sum(weights)
    scale = math.lcm(*(weight.denominator for weight in weights))
    whole = [int(weight * scale) for weight in weights]
    divisor = math.gcd(*whole)
    if sum(whole) // divisor > LONGEST_PERIOD:
        exact = [weight * LONGEST_PERIOD / total for weight in weights]
        whole = [max(int(share), 1) if share else 0 for share in exact]
        while (rest := LONGEST_PERIOD - sum(whole)) != 0:
            step = 1 if rest > 0 else -1
            able = [row for row, value in enumerate(whole) if value and (step > 0 or value > 1)]
            whole[max(able, key=lambda row: step * (exact[row] - whole[row]))] += step
        divisor = math.gcd(*whole)
    return [value // divisor for value in whole]


def _schedule(
    weights: Sequence[int], owed: Sequence[Fraction], left: Sequence[int | None], room: int | None
) -> tuple[list[int], int]:
    """The source at each position, and how many of the last ones repeat for ever.

    0 do where it ends: after `room` examples, or where a source has given all that it has left.

    A source may be drawn when it is owed 1 / (2 K - 2) or more. Of these comes first the one that will first be owed 1
    less that (Tijdeman's rule), or, where some already are, the one that is owed most. All numbers are whole.
    """
    active = [source for source, weight in enumerate(weights) if weight]
    period, parts = sum(weights), max(1, 2 * len(active) - 2)
    one = math.lcm(period, parts, *(owed[source].denominator for source in active))
    rates = [weights[source] * one // period for source in active]
    due = [int(owed[source] * one) for source in active]
    least = one // parts if len(active) > 1 else 0
    rest = [left[source] for source in active]
    table: list[int] = []
    seen: dict[tuple[int, ...], int] = {}
    places = range(len(active))
    while True:
        if len(table) % period == 0:
            if (state := tuple(due)) in seen:
                return [active[place] for place in table], len(table) - seen[state]
            seen[state] = len(table)
        due = [value + rate for value, rate in zip(due, rates, strict=True)]
        chosen = max(places, key=lambda place: due[place])
        if due[chosen] < one - least:
            ready = [place for place in places if due[place] >= least]
            # In how many examples it will be owed so much; of equal ones the one that is owed most.
            chosen = min(
                ready, key=lambda place: (-((due[place] - one + least) // rates[place]), -due[place]), default=chosen
            )
        due[chosen] -= one
        table.append(chosen)
        if (of := rest[chosen]) is not None:
            rest[chosen] = of - 1
        if rest[chosen] == 0 or len(table) == room:
            return [active[place] for place in table], 0


def _ranks(values: Integer[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    """How many equal values are before each."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    ranks = np.empty(len(values), np.int32)
    ranks[order] = np.arange(len(values)) - np.searchsorted(ordered, ordered)
    return ranks
