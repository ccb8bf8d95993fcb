"""A run opened to be evaluated: its data, a mesh of its own, and steps that are compiled once for all checkpoints."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import chz

from mmjax.config import experiment_file
from mmjax.errors import UserError
from mmjax.files import local_path

from .generate import write_by

if TYPE_CHECKING:
    import numpy as np

    from mmjax.evaluation.eval_result import EvalResult
    from mmjax.evaluation.suite_result import SuiteResult
    from mmjax.model import Multimodal

    from .evaluate import Evaluation

# Examples that a device works on at a time, at most; few enough that what training has no need for fits, too.
LARGEST_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Subject:
    """The model of one checkpoint, which sees what it is given, and what it does on the split once that is asked."""

    model: "Multimodal"
    step: int
    answer: "Callable[[Multimodal], EvalResult]"
    judge: "Callable[[Multimodal], EvalResult], SuiteResult]"

    @functools.cached_property
    def outcome(self) -> "EvalResult":
        """What it did on the split."""
        return self.answer(self.model)

    @functools.cached_property
    def standard(self) -> "SuiteResult":
        """The standard figures of that."""
        return self.judge(self.model, self.outcome)


class Session:
    """Evaluates checkpoints of one run, one after the other, as one request asks."""

    def __init__(self, request: "Evaluation"):
        """Raises UserError where the request does not fit the run."""
        import jax
        from jax.sharding import NamedSharding

        from mmjax.compilation import cache_compilations
        from mmjax.evaluation.evaluator import Evaluator
        from mmjax.evaluation.judge_model import JudgeModel
        from mmjax.evaluation.suites.generation import makers
        from mmjax.sharding.mesh import choose_rules

        self.request, self.run_dir = request, local_path(request.run_dir)
        trained = experiment_file.read(request.run_dir)
        self.fingerprint = experiment_file.fingerprint(trained)
        outputs = [name for name, part in trained.model.outputs.items() if part is not None]
        self.experiment = chz.replace(trained, model=write_by(request.decoding, trained.model, outputs))
        encoders = [name for name, part in trained.model.encoders.items() if part is not None]
        self.given = choose(request.given, encoders)
        self.hidden = set(encoders) - set(self.given)
        self.data = trained.data.fit_tokenizers(trained.data_dir, request.run_dir)
        self.records = self.data.open(trained.data_dir, request.split)
        cache_compilations(trained.data_dir)
        self.mesh = request.mesh.build(jax.local_devices())
        self.rules = choose_rules("data" if self.mesh.shape["data"] == self.mesh.size else trained.rules, self.mesh)
        self.sharding = NamedSharding(self.mesh, self.rules.spec("batch"))
        # Each part of a batch is of the same size, and so gives the same numbers, however many parts there are.
        parts = math.prod(self.mesh.shape[axis] for axis in self.rules.batch)
        self.size = min(LARGEST_BATCH, trained.train.batch_size) * parts
        self.evaluator = Evaluator(self.data, trained.data_dir, self.size, sharding=self.sharding, rules=self.rules)
        made = [part.target for part in makers(self.data.features, trained.model.outputs).values()]
        for target in request.readers:
            if target not in made:
                able = ", ".join(made) or "no picture and no sound"
                raise UserError(f"readers.{target} has nothing to read: the run makes {able}")
        with jax.set_mesh(self.mesh):
            self.readers = {
                target: JudgeModel(run, target, rules=self.rules) for target, run in request.readers.items()
            }

    @property
    def label(self) -> str:
        """What figures are called by: the split, and what was asked for besides."""
        request = self.request
        parts = [request.split, *([f"given {', '.join(self.given)}"] if request.given is not None else [])]
        if request.decoding is not None:
            written = chz.asdict(request.decoding).items()
            default = chz.asdict(type(request.decoding)()).items()
            parts += [f"{name} {value}" for name, value in sorted(set(written) - set(default))]
            parts += [f"seed {request.seed}"] if request.decoding.temperature > 0 else []
        return " ".join(parts)

    def open(self, step: int | None) -> Subject:
        """A checkpoint's model, and what it does. Raises NoCheckpoint where there is none."""
        import jax

        from mmjax.checkpoint.restore import restore_model

        request = self.request
        with jax.set_mesh(self.mesh):
            model, found = restore_model(
                self.experiment.model,
                request.run_dir,
                self.data.features,
                self.rules,
                step,
                ema=self.experiment.train.ema is not None,
            )
            model = model.without_modalities(self.hidden)
            model = model.with_outputs([name for name in model.outputs if model.is_defined(name)])
            return Subject(model, found, self._answer, self.judge)

    def _answer(self, model: "Multimodal") -> "EvalResult":
        request = self.request
        chance = request.decoding is not None and request.decoding.temperature > 0
        (outcome,) = self.evaluator.evaluate(model, request.split, seed=request.seed if chance else None)
        return outcome

    def judge(self, model: "Multimodal", outcome: "EvalResult") -> "SuiteResult":
        """The standard figures of what the model did."""
        from mmjax.evaluation.suites.standard import judge_standard

        found = judge_standard(model, outcome, self.data.features, self.experiment.train.batch_size, self.rules)
        return found.clustered(self.clusters)

    @functools.cached_property
    def clusters(self) -> "np.ndarray | None":
        """Which examples of the split depend on each other."""
        return self.data.clusters(self.experiment.data_dir, self.request.split)


def choose(given: str | None, encoders: Sequence[str]) -> list[str]:
    """The modalities that `given` names, or all. Raises UserError for one that the run does not read."""
    chosen = [*encoders] if given is None else [name for word in given.split(",") if (name := word.strip())]
    for name in chosen:
        if name not in encoders:
            raise UserError(f"given={given} names {name}, and the run reads {', '.join(encoders)}")
    if not chosen:
        raise UserError(f"given={given} names nothing; the run reads {', '.join(encoders)}")
    return chosen
