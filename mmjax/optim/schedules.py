"""Learning-rate schedules: a linear warm-up, then one of four shapes."""

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
        """The learning rate by step, for a run of `steps` steps with the highest rate `peak`."""
        if steps < 1:
            raise UserError(f"a learning-rate schedule needs at least one step, not {steps}; raise train.steps")
        warmup = min(self.warmup, steps // 2)
        body = self.body(steps - warmup, peak, warmup)
        if warmup == 0:
            return body
        return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), body], [warmup])

    def extendable_until(self, steps: int) -> int:
        """The last step of a run of `steps` steps up to which the rates of every longer run are the same.

        From a checkpoint up to there a longer run goes on exactly as if it had been asked for at once.
        """
        return self.warmup if 2 * self.warmup <= steps else 0

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
class Cooldown(Schedule):
    """A shape that does not depend on the run's length, then a straight line to 0 at the run's end.

    So a run can be extended from any step before its cooldown.
    """

    cooldown: float = chz.field(default=0.2, doc="share of the run's steps at its end over which the rate falls to 0")

    @chz.validate
    def _cooldown(self) -> None:
        if not 0 <= self.cooldown <= 1:
            raise ValueError(f"cooldown is a share between 0 and 1, not {self.cooldown}")

    @abc.abstractmethod
    def before_cooldown(self, peak: float) -> optax.Schedule:
        """The rate by the number of steps since the warm-up."""

    def body(self, steps: int, peak: float, warmup: int) -> optax.Schedule:
        rate, cooldown = self.before_cooldown(peak), min(round(self.cooldown * (steps + warmup)), steps)
        if cooldown == 0:
            return rate
        start = steps - cooldown
        return optax.join_schedules([rate, optax.linear_schedule(rate(start), 0.0, cooldown)], [start])

    def extendable_until(self, steps: int) -> int:
        return max(steps - round(self.cooldown * steps), self.warmup) if 2 * self.warmup <= steps else 0


@chz.chz
class Constant(Cooldown):
    """The peak, then a straight line to 0 over the last `cooldown` of the run (Hu et al. 2024, section 4)."""

    def before_cooldown(self, peak: float) -> optax.Schedule:
        return optax.constant_schedule(peak)


@chz.chz
class Rsqrt(Cooldown):
    """peak / sqrt(1 + t / timescale) after the warm-up, then a cooldown (Zhai et al. 2022, section 3.5)."""

    cooldown: float = chz.field(default=0.1, doc="share of the run's steps at its end over which the rate falls to 0")
    timescale: int = chz.field(default=10_000, doc="steps after the warm-up at which the rate is peak / sqrt(2)")

    @chz.validate
    def _timescale(self) -> None:
        if self.timescale < 1:
            raise ValueError(f"timescale is a positive number of steps, not {self.timescale}")

    def before_cooldown(self, peak: float) -> optax.Schedule:
        return lambda step: peak / (1 + step / self.timescale) ** 0.5


TABLE: dict[str, type[Schedule]] = {kind.__name__: kind for kind in (Cosine, Linear, Rsqrt, Constant)}
