"""Learning-rate schedules against their formulas."""

import chz
import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.optim.schedules import TABLE, Constant, Cosine, Linear, Rsqrt

STEPS, PEAK, WARMUP = 200, 0.3, 20
T = np.arange(STEPS)
SHARE = (T - WARMUP) / (STEPS - WARMUP)  # of what follows the warm-up


def values(schedule, steps=STEPS):
    rate = schedule.build(steps, PEAK)
    return np.array([float(rate(t)) for t in range(steps)])


def cooled(rate, cooldown):
    start = STEPS - cooldown
    return np.where(start > T, rate, rate[start] * (STEPS - T) / cooldown)


RSQRT = PEAK / np.sqrt(1 + (T - WARMUP).clip(0) / 50)
CASES = {
    "cosine": (Cosine(warmup=WARMUP, end=0.1), PEAK * (0.1 + 0.9 * (1 + np.cos(np.pi * SHARE)) / 2)),
    "linear": (Linear(warmup=WARMUP, end=0.1), PEAK * (1 - 0.9 * SHARE)),
    "constant": (Constant(warmup=WARMUP, cooldown=0.25), cooled(np.full(STEPS, PEAK), 50)),
    "constant for ever": (Constant(warmup=WARMUP, cooldown=0.0), np.full(STEPS, PEAK)),
    "rsqrt": (Rsqrt(warmup=WARMUP, timescale=50, cooldown=0.1), cooled(RSQRT, 20)),
    "rsqrt for ever": (Rsqrt(warmup=WARMUP, timescale=50, cooldown=0.0), RSQRT),
}


@pytest.mark.parametrize("name", CASES)
def test_formula(name):
    schedule, after = CASES[name]
    want = np.where(T < WARMUP, PEAK * T / WARMUP, after)
    np.testing.assert_allclose(values(schedule), want, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("schedule", "until"),
    [
        (Cosine(warmup=20), 20),
        (Linear(warmup=20), 20),
        (Constant(warmup=20, cooldown=0.25), 150),
        (Rsqrt(warmup=20, timescale=50, cooldown=0.1), 180),
        (Constant(warmup=20, cooldown=0.0), 200),
        (Constant(warmup=20, cooldown=1.0), 20),
        (Constant(warmup=101, cooldown=0.25), 0),
        (Cosine(warmup=101), 0),
    ],
    ids=repr,
)
def test_a_run_can_be_extended_as_long_as_its_rates_are_those_of_longer_runs(schedule, until):
    assert schedule.extendable_until(STEPS) == until
    for longer in (STEPS + 1, 2 * STEPS, 10 * STEPS):
        np.testing.assert_array_equal(values(schedule)[:until], values(schedule, longer)[:until])
    # What comes after the rate at that step, the last that is the same, is another.
    assert until == STEPS or values(schedule)[until + 1] != values(schedule, 2 * STEPS)[until + 1]


@pytest.mark.parametrize("kind", TABLE.values(), ids=TABLE)
def test_short_run_warms_up_over_its_first_half(kind):
    rates = values(kind(warmup=1000), steps=10)
    np.testing.assert_allclose(rates[:6], PEAK * np.arange(6) / 5, rtol=1e-6)
    assert np.isfinite(values(kind(warmup=1000), steps=1)).all()


@pytest.mark.parametrize("kind", TABLE.values(), ids=TABLE)
def test_without_warmup_the_first_step_has_the_peak(kind):
    assert values(kind(warmup=0))[0] == pytest.approx(PEAK)


def test_wrong_values():
    with pytest.raises(ValueError, match="warmup"):
        Cosine(warmup=-1)
    with pytest.raises(ValueError, match="cooldown"):
        Constant(cooldown=1.5)
    with pytest.raises(ValueError, match="timescale"):
        chz.replace(Rsqrt(), timescale=0)
    with pytest.raises(UserError, match="at least one step"):
        Cosine().build(0, PEAK)
