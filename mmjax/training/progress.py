"""Progress of a run on standard error: a bar on a terminal, otherwise a line every few seconds."""

import contextlib
import dataclasses
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from io import TextIOBase
from typing import SupportsFloat

from mmjax.formatting import duration
from mmjax.hardware.flops import utilisation

# Rates are those of the last so many updates, so that they follow a change and are not ruled by the first, slow steps.
WINDOW = 20


@dataclasses.dataclass(frozen=True)
class Rates:
    """The speed of a run. `utilisation` is the share of the machine's peak FLOP/s, None if unknown."""

    steps_per_second: float
    examples_per_second: float
    utilisation: float | None
    seconds_left: float

    def metrics(self, split: str = "train") -> dict[str, float]:
        """The rates under the names that they have in metrics.jsonl."""
        named = {"steps_per_second": self.steps_per_second, "examples_per_second": self.examples_per_second}
        if self.utilisation is not None:
            named["utilisation"] = self.utilisation
        return {f"{split}/{name}": value for name, value in named.items()}


class Progress:
    """Shows loss, steps and examples per second, model-FLOP utilisation and time left.

    `update` is called with a loss whenever one has been fetched from the devices: only then is the step known to be
    done, so the rates are measured between those calls. Without a loss it only moves the bar. Rates leave out what
    happened before `start`, the first update (compilation), and what runs inside `pause`.

    `model_flops` are those of one step on all devices, `peak` what all devices could do in a second. `enabled=False`
    (every process but the lead) shows nothing and still measures the rates.
    """

    def __init__(
        self,
        steps: int,
        start: int = 0,
        *,
        examples_per_step: int,
        model_flops: float | int = 0,
        peak: float | int | None = None,
        enabled: bool = True,
        every_seconds: float | int = 20,
        stream: TextIOBase | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.steps, self.step = steps, start
        self.examples_per_step, self.model_flops, self.peak = examples_per_step, model_flops, peak
        self.every_seconds, self.enabled = every_seconds, enabled
        self.rates: Rates | None = None
        self._stream = stream or sys.stderr
        self._clock = clock
        self._paused = 0.0
        # (step, seconds of the clock, seconds of it paused) of the first update and of the latest ones.
        self._first: tuple[int, float, float] | None = None
        self._recent: deque[tuple[int, float, float]] = deque(maxlen=WINDOW + 1)
        self._next_line = -float("inf")
        self._loss: float | None = None
        self._bar = self._make_bar() if enabled and self._stream.isatty() else None

    def _make_bar(self):
        from tqdm import tqdm

        layout = "{percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt}  {desc}"
        options = {"file": self._stream, "bar_format": layout, "dynamic_ncols": True, "miniters": 1, "mininterval": 0.2}
        return tqdm(total=self.steps, initial=self.step, **options)

    def update(self, step: int, loss: SupportsFloat | None = None) -> Rates | None:
        """Shows that `step` steps are done. Returns the rates, None until they are known."""
        self.step = step
        if loss is not None:
            self._loss = float(loss)
            self._measure(step)
        if self._bar is not None:
            if loss is not None:
                self._bar.set_description_str(self._describe(), refresh=False)
            self._bar.update(step - self._bar.n)
        elif self.enabled and loss is not None and (self._clock() >= self._next_line or step >= self.steps):
            self._next_line = self._clock() + self.every_seconds
            share = f" ({100 * step / self.steps:.0f}%)" if self.steps else ""
            self._print(f"step {step}/{self.steps}{share}  {self._describe()}")
        return self.rates

    def _measure(self, step: int) -> None:
        now = (step, self._clock(), self._paused)
        if self._first is None:
            self._first = now
        self._recent.append(now)
        before = self._recent[0]
        busy = (now[1] - before[1]) - (now[2] - before[2])
        if step == before[0] or busy <= 0:
            return
        seconds = busy / (step - before[0])
        # The time left is estimated from the whole session, evaluations and checkpoints included.
        since = (now[1] - self._first[1]) / (step - self._first[0])
        self.rates = Rates(
            steps_per_second=1 / seconds,
            examples_per_second=self.examples_per_step / seconds,
            utilisation=utilisation(self.model_flops, seconds, self.peak) if self.model_flops and self.peak else None,
            seconds_left=max(self.steps - step, 0) * since,
        )

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves what runs inside (an evaluation, a checkpoint) out of the rates."""
        begin = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - begin

    def message(self, text: str) -> None:
        """Prints a line above the bar."""
        if self.enabled:
            self._print(text)

    def close(self) -> None:
        """Ends the line of the bar."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def _describe(self) -> str:
        parts = [] if self._loss is None else [f"loss {self._loss:.4g}"]
        if self.rates is not None:
            parts.append(f"{_short(self.rates.steps_per_second)} steps/s")
            parts.append(f"{_short(self.rates.examples_per_second)} examples/s")
            if self.rates.utilisation is not None:
                parts.append(f"{100 * self.rates.utilisation:.1f}% of peak")
            parts.append(f"{duration(self.rates.seconds_left)} left")
        return "  ".join(parts)


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
