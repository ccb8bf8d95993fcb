"""One cell of an ablation: one choice, trained with every seed and probed."""

import dataclasses
import functools
import itertools
import json
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chz
import jax
import numpy as np
from jax.sharding import NamedSharding

from mmjax.ablation.match import Cost, measure
from mmjax.checkpoint.restore import restore_model
from mmjax.config.experiment import Experiment
from mmjax.config.experiment_file import resolve_runs
from mmjax.errors import Diverged, Preempted, UserError
from mmjax.evaluation.context import EvalContext
from mmjax.evaluation.probe import Answers, LinearProbe
from mmjax.files import to_path, write_atomic
from mmjax.heads import Classify
from mmjax.metrics.information import estimate_information
from mmjax.model import Multimodal
from mmjax.sharding.mesh import choose_rules
from mmjax.sharding.rules import Rules
from mmjax.signals import preemption_guard
from mmjax.training.loop import train_together
from mmjax.training.run_dir import RunDir
from mmjax.types import Feature
from mmjax.vmap_runs import stack

ANSWERS = "answers.json"
FAILED = "failed.json"
# Hidden modalities and noise are looked at on so many examples.
PROBED = 2048
# Noise is as strong as the signal.
NOISE = 1.0


@dataclasses.dataclass(frozen=True)
class Cell:
    """A choice, its values by key, and its experiment but for seed and run directory."""

    choice: str
    values: dict[str, str]
    experiment: Experiment
    folder: Path

    @property
    def features(self) -> dict[str, Feature]:
        """What its data hold."""
        return self.experiment.data.fit_tokenizers(self.experiment.data_dir).features

    @functools.cached_property
    def cost(self) -> Cost:
        """Parameters and step FLOPs of its model."""
        return measure(self.experiment.model, self.features, self.experiment.train.batch_size)

    def check(self) -> None:
        """Raises UserError if its data are missing or its model cannot be built, before any training."""
        experiment = self.experiment
        try:
            for split in experiment.data.source.splits:
                experiment.data.open(experiment.data_dir, split)
            _ = self.cost
        except UserError as error:
            raise UserError(f"{self.choice}: {error}") from error

    def runs(self, seeds: Sequence[int]) -> list[Experiment]:
        """One experiment a seed, each with its own run directory."""
        return [chz.replace(self.experiment, seed=seed, run_dir=str(self.folder / f"seed_{seed}")) for seed in seeds]

    def done(self, seeds: Sequence[int]) -> bool:
        """Whether every seed is trained and probed."""
        return all((to_path(run.run_dir) / ANSWERS).exists() for run in self.runs(seeds))

    @property
    def failures(self) -> dict[str, str]:
        """Why seeds failed, in one sentence each."""
        path = self.folder / FAILED
        return json.loads(path.read_text()) if path.exists() else {}

    def run(self, seeds: Sequence[int]) -> None:
        """Trains and probes what is not done yet. A seed that fails is noted; the others go on.

        Raises Preempted where `mmjax.signals` was told to stop: after a checkpoint, or before what is asked next.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / FAILED).unlink(missing_ok=True)
        failures: dict[str, str] = {}
        untrained = [run for run in self.runs(seeds) if not (to_path(run.run_dir) / "summary.json").exists()]
        if untrained and self._attempt(train_together, untrained) is not None:
            # One of several must not cost the others: each by itself, from its last checkpoint.
            failures = {str(run.seed): reason for run in untrained if (reason := self._attempt(train_together, [run]))}
        trained = [run for run in self.runs(seeds) if str(run.seed) not in failures]
        unprobed = [run for run in trained if not (to_path(run.run_dir) / ANSWERS).exists()]
        if unprobed:
            reason = self._attempt(write_answers, unprobed)
            failures |= {str(run.seed): reason for run in unprobed if reason}
        if failures:
            write_atomic(self.folder / FAILED, json.dumps(failures, indent=2))

    def _attempt(self, function: Any, runs: list[Experiment]) -> str | None:
        """Calls a function of the runs; why it failed, if it did."""
        try:
            function(runs)
        except Preempted:
            raise
        except (UserError, Diverged) as error:
            return " ".join(str(error).split())
        except Exception as error:
            write_atomic(self.folder / "failed.txt", traceback.format_exc())
            return f"{type(error).__name__}, see {self.folder / 'failed.txt'}"
        return None


def judged_output(experiment: Experiment) -> tuple[str, Classify] | None:
    """The first output that says classes, whose answers can be probed, with its name."""
    named = ((name, output) for name, output in experiment.model.outputs.items() if isinstance(output, Classify))
    return next(named, None)


def write_answers(experiments: Sequence[Experiment]) -> None:
    """Probes trained models that differ in seed only, and writes answers.json into each run directory.

    It holds `correct`, a string of 0 and 1 over all answers of the test split, and `clusters`, which of these depend on
    each other: those of an example, or of a cluster of examples where the source has some; `chance`, the share of the
    commonest class. And on evenly spread
    examples the accuracy with every set of modalities (`subsets`, the names joined by +), with noise in each (`noise`),
    and the estimated information of every pair of modalities about the label (`information`, bits).
    """
    experiments = resolve_runs(experiments)
    first = experiments[0]
    found, mesh = judged_output(first), first.mesh.build()
    if found is None:
        for experiment in experiments:
            write_atomic(to_path(experiment.run_dir) / ANSWERS, json.dumps({}))
        return
    print("asking what is left without a modality, and with noise in one", flush=True)
    with jax.set_mesh(mesh), preemption_guard() as asked_to_stop:
        rules = choose_rules(first.rules, mesh)
        sharding = NamedSharding(jax.sharding.get_mesh(), rules.spec("batch"))
        runs = [RunDir(experiment, sharding) for experiment in experiments]
        features = runs[0].data.features
        models = stack([_restore(experiment, features, rules) for experiment in experiments])
        name, output = found
        split = runs[0].data.source.splits[-1]
        context = EvalContext(runs[0].data, first.data_dir, split, first.train.batch_size, sharding, rules)

        def prober(examples: int | None) -> LinearProbe:
            return LinearProbe(context, name, output.target, count=len(runs), examples=examples)

        everything = prober(None).predict(models)
        clusters = runs[0].data.clusters(first.data_dir, split)
        dependent = everything.examples if clusters is None else clusters[everything.examples]
        some = prober(PROBED)
        modalities = tuple(models.encoders)
        asked: dict[str, Answers] = {}
        for size in range(len(modalities) + 1):
            for subset in itertools.combinations(modalities, size):
                if asked_to_stop():
                    raise Preempted("stopped between two questions to trained models; the same command goes on")
                asked["+".join(subset)] = some.predict(models, hidden=set(modalities) - set(subset))
        noised = {modality: some.predict(models, noise={modality: NOISE}).right for modality in modalities}
    for index, experiment in enumerate(experiments):
        answers = {
            "correct": "".join("01"[int(right)] for right in everything.right[index]),
            "clusters": dependent.tolist(),
            "chance": float(np.bincount(everything.truth).max() / len(everything.truth)),
            "subsets": {subset: float(answers.right[index].mean()) for subset, answers in asked.items()},
            "noise": {modality: float(right[index].mean()) for modality, right in noised.items()},
            "information": [_information(asked, pair, index) for pair in itertools.combinations(modalities, 2)],
        }
        write_atomic(to_path(experiment.run_dir) / ANSWERS, json.dumps(answers))


def _restore(experiment: Experiment, features: dict[str, Feature], rules: Rules) -> Multimodal:
    train = experiment.train
    model, _ = restore_model(
        experiment.model, experiment.run_dir, features, rules, train.steps, ema=train.ema is not None
    )
    return model


def _information(asked: dict[str, Answers], pair: tuple[str, str], index: int) -> dict[str, Any]:
    a, b = pair
    alone, other, both = (asked[subset].probabilities[index] for subset in (a, b, "+".join(pair)))
    found = estimate_information(alone, other, both, asked[a].truth)
    return {"a": a, "b": b, **found.as_json()}


def read_answers(run_dir: str | Path) -> dict[str, Any]:
    """What `write_answers` wrote; `correct` as Int[A], `clusters` as Int[A]."""
    path = to_path(run_dir) / ANSWERS
    try:
        answers = json.loads(path.read_text())
        if "correct" in answers:
            answers["correct"] = np.frombuffer(answers["correct"].encode(), np.uint8) - ord("0")
            answers["clusters"] = np.array(answers["clusters"], np.int64)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged; delete it, and the same command asks the model again") from error
    return answers
