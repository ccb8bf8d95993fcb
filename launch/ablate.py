"""Compare choices: `python -m launch.ablate EXPERIMENT over=KEY [choices=A,B] [key=value ...]`.

Every choice of a key, or every combination of choices of several, is trained with several seeds and judged on the test
split. The same command goes on where it was interrupted. Several processes started by `launch.local` or
`launch.cluster` share the cells; the one that ends last writes the table.
"""

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import chz

from mmjax import files
from mmjax.ablation.cell import Cell
from mmjax.ablation.grid import Match, check_width, choices_of, keys_of, make_grid, match, own_choice
from mmjax.config.experiment import Experiment, parts
from mmjax.config.experiment_file import FILE, difference, fingerprint, read
from mmjax.errors import Preempted, UserError
from mmjax.fields import OPERATIONAL
from mmjax.formatting import duration
from mmjax.signals import preemption_guard

from . import command_line
from .huge_pages import prefer_huge_pages

GRID = "grid.json"
MOST_SEEDS = 1000


@chz.chz
class Ablation(Experiment):
    """An experiment and what of it is varied."""

    over: str = chz.field(default="model.fusion", doc="the key that is varied, or several, separated by commas")
    choices: str | None = chz.field(
        default=None, doc="its values, separated by commas, those of the next key behind a /; None: all there are"
    )
    seeds: int = chz.field(default=3, doc="runs of each choice, with seeds from `seed` on")
    match: Match = chz.field(default="flops", doc="what all choices cost alike, by scaling model.width")
    metric: str | None = chz.field(
        default=None, doc="the figure that is compared; None: the accuracy of the first output that says classes"
    )
    run_dir: str = chz.field(
        default=None,
        x_type=str | None,
        converter=chz.mungers.if_none(lambda ablation: f"runs/{ablation.name}_ablation"),
        doc="where everything goes",
        metadata=OPERATIONAL,
    )

    @chz.validate
    def _some(self) -> None:
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise ValueError(f"seeds={self.seeds} must lie between 1 and {MOST_SEEDS}")


def load(name: str) -> Ablation:
    """The ablation of an experiment by its name, with default keys."""
    experiment = command_line.load_experiment(name)
    return Ablation(**{name: part for name, part in parts(experiment).items() if name != "run_dir"})


def ablate(request: Ablation) -> Path:
    """Run what is left of the grid; returns the path of its table, or its folder if others go on."""
    from mmjax.ablation.table import check_metric, write_table
    from mmjax.compilation import cache_compilations
    from mmjax.reports.ablation_summary import cautions, chance, headline
    from mmjax.sharding.distributed import process_index_and_count

    began = time.monotonic()
    with preemption_guard() as asked_to_stop:
        cells, baseline, seeds = plan(request)
        folder = files.to_path(request.run_dir)
        cache_compilations(request.data_dir)
        _claim(folder, request, cells)
        index, count = process_index_and_count()
        mine = cells[index::count]
        for number, cell in enumerate(mine):
            if asked_to_stop():
                raise Preempted(f"stopped before {cell.choice}; the same command goes on")
            left = _left(began, number, len(mine))
            command_line.say(
                f"[{number + 1}/{len(mine)}] {cell.choice}: {len(seeds)} seed{'s' * (len(seeds) > 1)}{left}"
            )
            # The last line on standard output is the table's path alone.
            with contextlib.redirect_stdout(sys.stderr):
                cell.run(seeds)
            for seed, reason in cell.failures.items():
                command_line.say(f"{cell.choice}, seed {seed}, failed: {reason}")
            check_metric(cell, seeds, request.metric)
    pending = [cell.choice for cell in cells if not cell.done(seeds) and not cell.failures]
    if pending:
        command_line.say(f"other processes are at {', '.join(pending)}; the one that ends last writes the table")
        return folder
    table = write_table(folder, cells, seeds, baseline, request.metric, request.match)
    result = files.read_json(table)
    command_line.say(" ".join([*headline(result), chance(result), *cautions(result)]))
    command_line.say(f"report: {folder / 'report.html'}")
    return table


def experiment_of(request: Ablation) -> Experiment:
    """What every cell starts from: the experiment, with as many steps as it has for an ablation."""
    experiment = Experiment(**parts(request))
    steps = experiment.train.ablation_steps
    if steps is None:
        return experiment
    if steps != experiment.train.steps:
        command_line.say(f"every run has train.ablation_steps={steps} steps, not train.steps={experiment.train.steps}")
    return chz.replace(experiment, train=chz.replace(experiment.train, steps=steps))


def plan(request: Ablation) -> tuple[list[Cell], str, list[int]]:
    """The cells, matched in cost; the baseline; the seeds. Raises UserError for invalid requests."""
    experiment = experiment_of(request)
    keys = keys_of(request.over)
    values = choices_of(experiment, keys, request.choices)
    cells = make_grid(experiment, keys, values, files.to_path(request.run_dir))
    for cell in cells:
        cell.check()
    own = own_choice(experiment, keys)
    baseline = own if own in [cell.choice for cell in cells] else cells[0].choice
    reference = next(cell for cell in cells if cell.choice == baseline)
    if request.match != "none":
        check_width(request.match, keys)
        command_line.say(f"matching {request.match} of {len(cells)} choices to {baseline}")
        cells = [cell if cell is reference else match(cell, request.match, reference.cost) for cell in cells]
    return cells, baseline, [request.seed + index for index in range(request.seeds)]


def _claim(folder: Path, request: Ablation, cells: Sequence[Cell]) -> None:
    """Notes in the folder which grid it holds, which may have grown. Raises UserError for another."""
    fingerprints = {cell.choice: fingerprint(cell.experiment) for cell in cells}
    asked = {"over": request.over, "match": request.match}
    old: dict[str, str] = {}
    path = folder / GRID
    if path.exists():
        try:
            there = files.read_json(path)
            old = dict(there["cells"])
            differing = [f"{name}={there[name]}" for name in asked if there[name] != asked[name]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no grid in valid JSON, perhaps cut short; set another run_dir") from error
        changed = (
            cell for cell in cells if old.get(cell.choice, fingerprints[cell.choice]) != fingerprints[cell.choice]
        )
        differing += [_change(cell) for cell in itertools.islice(changed, 1)]
        if differing:
            raise UserError(f"{folder} holds another grid ({', '.join(differing)}); set another run_dir")
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds something else than a grid; set another run_dir")
    with files.make_folder(folder):
        files.write_atomic(path, json.dumps({**asked, "cells": old | fingerprints}, indent=2) + "\n")


def _change(cell: Cell) -> str:
    """In what the cell of a folder differs from the one there is to be."""
    for path in sorted(cell.folder.glob(f"seed_*/{FILE}")):
        there = read(path.parent)
        lines = difference(there, chz.replace(cell.experiment, seed=there.seed))
        if lines:
            return "; ".join(lines[:3])
    return f"{cell.choice} is another experiment"


def _left(began: float, done: int, count: int) -> str:
    """What is left, by the cells done so far."""
    if not done:
        return ""
    return f", about {duration((time.monotonic() - began) / done * (count - done))} left"


SUBJECTS = command_line.Subjects(
    "experiment", command_line.experiment_names, load, others=True, more=command_line.OWN, keys=Ablation
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return command_line.main(ablate, "Compare choices of a key, with certainty and reasons.", argv, SUBJECTS)


if __name__ == "__main__":
    prefer_huge_pages()
    sys.exit(main())
