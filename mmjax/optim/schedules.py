"""Learning rates over a run: a linear warm-up, then one of four shapes."""

import abc

import chz
import optax

from mmjax.errors import UserError


@chz.chz
class Schedule(abc.ABC):
    """The learning rate as a function of the step.

    It starts at 0 and climbs in a straight line to its peak, which it reaches after `warmup` steps; the subclass says
    what follows over the remaining ones. A run of fewer than 2 `warmup` steps warms up over its first half.
    """

    warmup: int = chz.field(default=100, doc="steps of linear warm-up (at most half of the run)")

    @chz.validate
    def _warmup(self) -> None:
        if self.warmup < 0:
            raise ValueError(f"warmup is a number of steps and cannot be {self.warmup}")

    def build(self, steps: int, peak: float) -> optax.Schedule:
        """The learning rate as a function of the step, for a run of `steps` steps with the highest rate `peak`."""
        if steps < 1:
            raise UserError(f"a learning-rate schedule needs at least one step, not {steps}; raise train.steps")
        warmup = min(self.warmup, steps // 2)
        body = self.body(steps - warmup, peak, warmup)
        if warmup == 0:
            return body
        return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), body], [warmup])

    @abc.abstractmethod
    def body(self, steps: int, peak: float, warmup: int) -> optax.Schedule:
        """The `steps` steps that follow a warm-up of `warmup` steps, counted from its end."""


@chz.chz
class Cosine(Schedule):
    """Half a cosine from the peak down to `end` x peak (Loshchilov & Hutter 2017, one cycle)."""

    end: float = chz.field(default=0.0, doc="last learning rate as a share of the peak")

    def body(self, steps: int, peak: float, warmup: int) -> optax.Schedule:
        return optax.cosine_decay_schedule(peak, steps, alpha=self.end)


@chz.chz
class Linear(Schedule):
    """A straight line from the peak down to `end` x peak."""

    end: float = chz.field(default=0.0, doc="last learning rate as a share of the peak")

    def body(self, steps: int, peak: float, warmup: int) -> optax.Schedule:
        return optax.linear_schedule(peak, self.end * peak, steps)


@chz.chz
class Constant(Schedule):
    """The peak, then a straight line to 0 over the last `cooldown` of the run (Hu et al. 2024, section 4)."""

    cooldown: float = chz.field(default=0.2, doc="share of the run's steps at its end over which the rate falls to 0")

    @chz.validate
    def _cooldown(self) -> None:
        _check_share(self.cooldown)

    def body(self, steps: int, peak: float, warmup: int) -> optax.Schedule:
        return _cooled(optax.constant_schedule(peak), steps, round(self.cooldown * (steps + warmup)))


@chz.chz
class Rsqrt(Schedule):
    """peak / sqrt(1 + t / timescale) t steps after the warm-up, then a line to 0 (Zhai et al. 2022, section 3.5).

    The shape does not depend on how long the run is but for its cooldown, so a run can be continued from before it.
    """

    timescale: int = chz.field(default=10_000, doc="steps after the warm-up at which the rate is peak / sqrt(2)")
    cooldown: float = chz.field(default=0.1, doc="share of the run's steps at its end over which the rate falls to 0")

    @chz.validate
    def _sizes(self) -> None:
        _check_share(self.cooldown)
        if self.timescale < 1:
            raise ValueError(f"timescale is a positive number of steps, not {self.timescale}")

    def body(self, steps: int, peak: float, warmup: int) -> optax.Schedule:
        def rate(step):
            return peak / (1 + step / self.timescale) ** 0.5

        return _cooled(rate, steps, round(self.cooldown * (steps + warmup)))


def _cooled(rate: optax.Schedule, steps: int, cooldown: int) -> optax.Schedule:
    """`rate`, and over the last `cooldown` of `steps` steps a straight line from where it is then to 0."""
    cooldown = min(cooldown, steps)
    if cooldown == 0:
        return rate
    start = steps - cooldown
    return optax.join_schedules([rate, optax.linear_schedule(rate(start), 0.0, cooldown)], [start])


def _check_share(cooldown: float) -> None:
    if not 0 <= cooldown <= 1:
        raise ValueError(f"cooldown is a share between 0 and 1, not {cooldown}")


TABLE: dict[str, type[Schedule]] = {kind.__name__: kind for kind in (Cosine, Linear, Rsqrt, Constant)}
