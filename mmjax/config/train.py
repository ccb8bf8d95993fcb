"""Settings of training: how many steps, batch size, how often something is logged or evaluated."""

from collections.abc import Mapping

import chz

from mmjax.checkpoint.initialize import Initialize
from mmjax.checkpoint.pretrained.load import Pretrained
from mmjax.fields import OPERATIONAL
from mmjax.writers import MetricWriter, TensorBoard

# Each of its rows is a place in an order that every host makes up.
LARGEST_BATCH = 2**20


@chz.chz
class Train:
    """How many steps are trained, on what batches, and how often figures are logged and evaluated."""

    steps: int = chz.field(default=1000, doc="steps in all; more of them extend a run that has begun")
    replan: bool = chz.field(
        default=False, doc="extend a run whose rates so far a longer schedule would not have had, from its last step"
    )
    batch_size: int = chz.field(default=64, doc="examples in a global batch")
    ablation_steps: int | None = chz.field(
        default=None, doc="steps in each cell of an ablation; None: as many as steps", metadata=OPERATIONAL
    )
    log_every: int = chz.field(default=20, doc="steps between logged figures", metadata=OPERATIONAL)
    writers: Mapping[str, MetricWriter] = chz.field(
        default_factory=lambda: {"tensorboard": TensorBoard()},
        doc="where metrics are written beside metrics.jsonl",
        metadata=OPERATIONAL,
    )
    evaluate_every: int = chz.field(default=500, doc="steps between evaluations", metadata=OPERATIONAL)
    evaluate_examples: int | None = chz.field(
        default=None, doc="examples of a split to evaluate on, evenly spread; None: all", metadata=OPERATIONAL
    )
    accumulate: int = chz.field(default=1, doc="parts a batch is worked through in, to save memory")
    ema: float | None = chz.field(
        default=None, doc="decay of a moving average of the parameters, which is then evaluated"
    )
    stop_after_skipped: int = chz.field(default=10, doc="skipped steps in a row that end the run")
    initialize: Initialize | Pretrained | tuple[Initialize | Pretrained, ...] | None = chz.field(
        default=None, doc="start from parameters of another run or project, or of several in order"
    )

    @chz.validate
    def _positive(self) -> None:
        counts = ("steps", "ablation_steps", "batch_size", "log_every", "evaluate_every", "evaluate_examples")
        for name in (*counts, "accumulate", "stop_after_skipped"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.batch_size > LARGEST_BATCH:
            raise ValueError(f"batch_size={self.batch_size} must be at most {LARGEST_BATCH}")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate} must divide batch_size={self.batch_size}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema={self.ema} must lie between 0 and 1")

    @property
    def origins(self) -> tuple[Initialize | Pretrained, ...]:
        """What parameters are loaded from before the first step, in order."""
        given = () if self.initialize is None else self.initialize
        return given if isinstance(given, tuple) else (given,)
