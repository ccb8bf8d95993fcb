"""A run opened for evaluation: its data, a mesh of its own, and its checkpoints one after the other."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import chz
import jax
from jax.sharding import NamedSharding

from mmjax.compilation import cache_compilations
from mmjax.config import experiment_file
from mmjax.errors import UserError
from mmjax.evaluation.context import EvalContext
from mmjax.evaluation.eval_result import EvalResult
from mmjax.evaluation.evaluator import Evaluator
from mmjax.evaluation.results import FOLDER
from mmjax.evaluation.suite_result import SuiteResult
from mmjax.generators.decoding import Decoding
from mmjax.model import Multimodal, build_model
from mmjax.run_folder import RunFolder
from mmjax.sharding.mesh import MeshShape, choose_rules

# Examples that a device works on at a time, at most; few enough that what training has no need for fits, too.
LARGEST_BATCH = 64


@dataclasses.dataclass(frozen=True, eq=False)
class EvalCheckpoint:
    """The model of one checkpoint, without hidden modalities, and its results on the split.

    `build(key)` draws a model of the same form with other parameters. Outputs draw at random from `draw_seed`, None:
    they give what is most probable. Suites may put files into `folder`, whose page has the `title`; `suite_results`
    holds what suites have found that others read.
    """

    model: Multimodal
    step: int
    evaluator: Evaluator
    build: Callable[[jax.Array], Multimodal]
    draw_seed: int | None = None
    folder: Path = Path()
    title: str = ""
    suite_results: dict[str, SuiteResult] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def result(self) -> EvalResult:
        """What the model predicted on the split."""
        (result,) = self.evaluator.evaluate(self.model, seed=self.draw_seed)
        return result


class EvalRun:
    """Opens checkpoints of one run, or its export, for evaluation.

    Attributes:
        folder: the run directory, or the export.
        experiment: the run's configuration.
        context: the data, split and devices.
        mesh: the mesh that everything lies on.
        label: what metrics are called by: the split, and what else was asked for.
    """

    def __init__(
        self,
        run_dir: str,
        split: str,
        *,
        given: str | None = None,
        decoding: Decoding | None = None,
        mesh: MeshShape | None = None,
        seed: int = 0,
        say: Callable[[str], None] = lambda line: None,
    ):
        """Raises UserError where the arguments do not fit the run."""
        self.folder = RunFolder(run_dir)
        self.run_dir, trained = self.folder.path, self.folder.experiment
        self.fingerprint = experiment_file.fingerprint(trained)
        outputs = {name: output for name, output in trained.model.outputs.items() if output is not None}
        self.experiment = chz.replace(trained, model=trained.model.with_decoding(decoding, list(outputs)))
        encoders = [name for name, encoder in trained.model.encoders.items() if encoder is not None]
        visible = choose_modalities(given, encoders)
        self._hidden = set(encoders) - set(visible)
        data = self.folder.load_data()
        data.open(trained.data_dir, split)
        cache_compilations(trained.data_dir)
        self.mesh = (mesh or MeshShape()).build(jax.local_devices())
        rules = choose_rules("data" if self.mesh.shape["data"] == self.mesh.size else trained.rules, self.mesh)
        # Each part of a batch is of the same size, and so gives the same numbers, however many parts there are.
        parts = math.prod(self.mesh.shape[axis] for axis in rules.batch)
        self.context = EvalContext(
            data,
            trained.data_dir,
            split,
            min(LARGEST_BATCH, trained.train.batch_size) * parts,
            NamedSharding(self.mesh, rules.spec("batch")),
            rules,
            group_size=trained.train.batch_size,
            visible=visible,
            outputs=outputs,
            seed=seed,
            say=say,
        )
        self._evaluator = Evaluator(self.context)
        self._draw_seed = seed if decoding is not None and decoding.temperature > 0 else None
        self.label = _label(split, None if given is None else visible, decoding, self._draw_seed)

    def open(self, step: int | None) -> EvalCheckpoint:
        """A checkpoint, the newest by default. Raises NoCheckpoint where there is none."""
        context, experiment = self.context, self.experiment
        build = functools.partial(build_model, model=experiment.model, features=context.features, rules=context.rules)
        with jax.set_mesh(self.mesh):
            model, step = self.folder.restore(experiment.model, context.features, context.rules, step)
            model = model.without_modalities(self._hidden)
            model = model.with_outputs([name for name in model.outputs if model.is_defined(name)])
        return EvalCheckpoint(
            model,
            step,
            self._evaluator,
            lambda key: build(key).without_modalities(self._hidden).with_outputs(model.outputs),
            self._draw_seed,
            self.run_dir / FOLDER / str(step) / self.label.replace(", ", "-").replace(" ", "-"),
            f"{experiment.name}, step {step}: {self.label}",
        )


def choose_modalities(given: str | None, encoders: Sequence[str]) -> list[str]:
    """The modalities that `given` names, or all. Raises UserError for one that the run does not encode."""
    chosen = [*encoders] if given is None else [name for word in given.split(",") if (name := word.strip())]
    for name in chosen:
        if name not in encoders:
            raise UserError(f"given={given} names {name}, and the run encodes {', '.join(encoders)}")
    if not chosen:
        raise UserError(f"given={given} names nothing; the run encodes {', '.join(encoders)}")
    return chosen


def _label(split: str, given: Sequence[str] | None, decoding: Decoding | None, seed: int | None) -> str:
    parts = [split, *([] if given is None else [f"given {', '.join(given)}"])]
    if decoding is not None:
        default = chz.asdict(type(decoding)()).items()
        parts += [f"{name} {value}" for name, value in sorted(set(chz.asdict(decoding).items()) - set(default))]
    return " ".join(parts if seed is None else [*parts, f"seed {seed}"])
