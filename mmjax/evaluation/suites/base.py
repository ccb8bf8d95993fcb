"""What every suite is: a configuration of its options, with what it evaluates of a checkpoint."""

import abc
import re

import chz

from mmjax.config.schema import known_classes
from mmjax.evaluation.context import EvalContext
from mmjax.evaluation.run import EvalCheckpoint
from mmjax.evaluation.suite_result import SuiteResult

DEFAULT = ("standard", "generation")


@chz.chz
class Suite(abc.ABC):
    """Options of a suite, which all have defaults, and what it evaluates of a checkpoint."""

    @property
    def missing(self) -> str:
        """Why there may be nothing to evaluate, as a clause."""
        return "there is nothing to evaluate"

    def check(self, context: EvalContext) -> None:
        """Raises UserError where the options do not fit the run, before a checkpoint is opened."""
        return

    def is_key(self, metric: str) -> bool:
        """Whether a metric, "output/metric", is one of the few that sum the suite up."""
        return metric.count("/") == 1

    @abc.abstractmethod
    def run(self, context: EvalContext, checkpoint: EvalCheckpoint) -> SuiteResult | None:
        """The metrics of a checkpoint and the page's sections; None where there is nothing to evaluate."""


def at_least_one(suite: Suite, option: str) -> None:
    """Validates an option that counts something, or is None."""
    value = getattr(suite, option)
    if value is not None and value < 1:
        raise ValueError(f"{option} must be at least 1")


def suite_name(cls: type[Suite]) -> str:
    """A suite's name on the command line and in results: `ZeroShot` becomes `zero_shot`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()


def default_suites() -> dict[str, Suite]:
    """Every suite whose module is imported, by name, with default options; the default suites first."""
    found = {suite_name(cls): cls() for cls in known_classes(Suite).values()}
    return {
        name: found[name] for name in sorted(found, key=lambda name: (-(name in DEFAULT), name != "standard", name))
    }
