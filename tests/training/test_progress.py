"""Rates against a clock that the test winds, and what is printed on a terminal and elsewhere."""

import io

import pytest

from mmjax.formatting import duration
from mmjax.training.progress import Progress


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make(**options) -> tuple[Progress, Clock, io.StringIO]:
    clock = Clock()
    stream = options.pop("stream", io.StringIO())
    return Progress(examples_per_step=16, clock=clock, stream=stream, **options), clock, stream


def test_rates_leave_out_earlier_steps_compilation_and_pauses():
    progress, clock, _ = make(steps=1000, start=500, model_flops=100.0, peak=1000.0)
    clock.seconds += 60  # the first step compiles
    assert progress.update(501, 2.0) is None
    clock.seconds += 5
    rates = progress.update(511, 1.5)
    assert rates.steps_per_second == pytest.approx(2)
    assert rates.examples_per_second == pytest.approx(32)
    assert rates.utilisation == pytest.approx(0.2)
    assert rates.seconds_left == pytest.approx(489 / 2)
    assert rates.metrics() == {
        "train/steps_per_second": pytest.approx(2),
        "train/examples_per_second": pytest.approx(32),
        "train/utilisation": pytest.approx(0.2),
    }
    with progress.pause():
        clock.seconds += 20
    clock.seconds += 5
    rates = progress.update(521, 1.5)
    assert rates.steps_per_second == pytest.approx(2)
    assert rates.seconds_left == pytest.approx(479 * 30 / 20)


def test_rates_follow_a_change():
    progress, clock, _ = make(steps=1000)
    for step in range(0, 100):
        clock.seconds += 1.0 if step < 50 else 0.25
        rates = progress.update(step, 1.0)
    assert rates.steps_per_second == pytest.approx(4)


def test_elsewhere_than_on_a_terminal_a_line_now_and_then():
    progress, clock, stream = make(steps=1000, every_seconds=30)
    for step in range(1, 1001):
        clock.seconds += 0.125
        progress.update(step, 1 / step)
    progress.message("checkpoint 1000 saved")
    progress.close()
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    assert [line.split()[:2] for line in lines[:-1]] == [
        ["step", f"{step}/1000"] for step in (1, 241, 481, 721, 961, 1000)
    ]
    assert lines[1] == "step 241/1000 (24%)  loss 0.004149  8 steps/s  128 examples/s  1 min 35 s left"
    assert lines[-1] == "checkpoint 1000 saved"


def test_a_bar_on_a_terminal_and_messages_above_it():
    progress, clock, stream = make(steps=40, start=10, stream=Terminal())
    for step in range(11, 41):
        clock.seconds += 0.5
        progress.update(step, 0.25 if step % 10 == 0 else None)
        if step == 20:
            progress.message("evaluated")
    progress.close()
    text = stream.getvalue()
    assert "25% |" in text.split("\r")[1]
    assert "\revaluated\n" in text.replace(" ", "").replace("\x1b[K", "")
    last = text.rstrip("\n").split("\r")[-1]
    assert "100% |" in last
    assert "40/40  loss 0.25  2 steps/s  32 examples/s  0 s left" in last


def test_who_is_not_the_lead_shows_nothing_and_knows_the_rates():
    progress, clock, stream = make(steps=10, enabled=False)
    progress.update(1, 1.0)
    clock.seconds += 1
    assert progress.update(3, 1.0).steps_per_second == pytest.approx(2)
    progress.message("hidden")
    progress.close()
    assert stream.getvalue() == ""


def test_durations():
    assert [duration(seconds) for seconds in (0.4, 59.6, 250, 11100, 187200)] == [
        "0 s",
        "1 min 0 s",
        "4 min 10 s",
        "3 h 5 min",
        "2 d 4 h",
    ]
