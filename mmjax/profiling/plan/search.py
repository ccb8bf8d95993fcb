"""Search over meshes and rematerialisation: all by estimate, the best ones compiled."""

import concurrent.futures
import dataclasses
import itertools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import chz

from mmjax.compilation import usable_cores
from mmjax.config import modules
from mmjax.config.experiment import Experiment
from mmjax.config.experiment_file import from_json, to_json
from mmjax.errors import UserError
from mmjax.hardware.chips import Chip
from mmjax.layers.stack import Remat
from mmjax.profiling.plan.cost_model import CostModel, Estimate, Sizes, cost_model, estimate
from mmjax.profiling.plan.plan import plan
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import MESH_AXES, PRESETS

# What may be computed again, from the quickest on, and in how many parts a batch is worked through where none fits.
REMATS: "tuple[Remat, ...]" = ("none", "weights", "dots_no_batch", "full")
PARTS = (1, 2, 4, 8)
# More devices than these do not share the work of one product.
WIDEST = 8


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A configuration of the training, and its estimate."""

    words: tuple[str, ...]
    experiment: Experiment
    estimate: Estimate
    fits: bool

    def json(self) -> dict[str, Any]:
        """Its entry in plan.json."""
        return {
            "overrides": list(self.words),
            "estimated_step_seconds": self.estimate.seconds,
            "estimated_mfu": self.estimate.mfu,
            "estimated_peak_bytes": self.estimate.memory["peak"],
            "estimated_to_fit": self.fits,
        }


def search(
    experiment: Experiment,
    chip: Chip,
    devices: int,
    slices: int,
    limit: float,
    say: Callable[[str], None],
    fast_group: int | None = None,
) -> list[Candidate]:
    """All candidates, by whether they are estimated to fit and then by time.

    `limit` is the usable memory in bytes; `fast_group` devices share the fast network, by default those of a slice.
    """
    fast_group = fast_group or devices // slices
    for parts in PARTS:
        found = []
        for remat in REMATS:
            accumulate = experiment.train.accumulate * parts
            if experiment.train.batch_size % accumulate:
                continue
            say(f"estimating with model.remat={remat} train.accumulate={accumulate}")
            changed = chz.replace(
                experiment,
                model=chz.replace(experiment.model, remat=remat),
                train=chz.replace(experiment.train, accumulate=accumulate),
            )
            words = (f"model.remat={remat}", *([f"train.accumulate={accumulate}"] if accumulate > 1 else []))
            costs = cost_model(changed)
            for sizes in meshes(devices, slices):
                candidate = _candidate(changed, words, costs, sizes, chip, fast_group, limit)
                if candidate is not None:
                    found.append(candidate)
        if any(candidate.fits for candidate in found):
            break
    order = {remat: place for place, remat in enumerate(REMATS)}
    return sorted(found, key=lambda each: (not each.fits, each.estimate.seconds, order[each.experiment.model.remat]))


def most_promising(
    candidates: Sequence[Candidate], experiment: Experiment, devices: int, count: int
) -> Sequence[Candidate]:
    """The first `count`, and the unchanged experiment if it is among the candidates."""

    def way(each: Experiment) -> tuple[Any, ...]:
        return each.mesh.resolve(devices), each.model.remat, each.train.accumulate

    try:
        asked = way(experiment)
    except UserError:  # its own mesh is of other devices
        return candidates[:count]
    return [*candidates[:count], *(each for each in candidates[count:] if way(each.experiment) == asked)]


def meshes(devices: int, slices: int) -> Iterator[Sizes]:
    """Sizes of all axes: replicas over slices and data, sharding over fsdp and tensor."""
    fast_group = devices // slices
    divisors = [size for size in range(1, fast_group + 1) if fast_group % size == 0]
    for tensor, fsdp in itertools.product(divisors, divisors):
        if tensor <= WIDEST and fast_group % (tensor * fsdp) == 0:
            data = fast_group // (tensor * fsdp)
            yield dict.fromkeys(MESH_AXES, 1) | {"replica": slices, "data": data, "fsdp": fsdp, "tensor": tensor}


def _candidate(
    experiment: Experiment,
    words: tuple[str, ...],
    costs: CostModel,
    sizes: Sizes,
    chip: Chip,
    fast_group: int,
    limit: float,
) -> Candidate | None:
    rules = "_".join(axis for axis in ("fsdp", "tensor") if sizes[axis] > 1) or "data"
    if not costs.is_divisible(sizes, PRESETS[rules].batch):
        return None
    used = {axis: size for axis, size in sizes.items() if size > 1 or axis == "data"}
    words = (*(f"mesh.{axis}={size}" for axis, size in used.items()), f"rules={rules}", *words)
    found = estimate(costs, sizes, chip, fast_group)
    changed = chz.replace(experiment, mesh=MeshShape(**used), rules=rules)
    return Candidate(words, changed, found, found.memory["peak"] <= limit)


def compile_all(
    candidates: Sequence[Candidate], topology: Any, say: Callable[[str], None]
) -> list[tuple[Candidate, dict[str, Any]]]:
    """The plans of candidates, compiled in parallel processes, the fastest that fits first."""
    context = multiprocessing.get_context("spawn")
    done: list[tuple[Candidate, dict[str, Any]]] = []
    own = sorted({name for each in candidates for name in modules.digests(each.experiment)})
    processes = min(usable_cores(), len(candidates))
    with concurrent.futures.ProcessPoolExecutor(processes, context, modules.import_all, (own,)) as pool:
        waiting = {pool.submit(_plan, to_json(each.experiment), topology): each for each in candidates}
        for future in concurrent.futures.as_completed(waiting):
            done.append((waiting[future], future.result()))
            say(f"[{len(done)}/{len(candidates)}] {' '.join(waiting[future].words)}: {summary_line(done[-1][1])}")
    return sorted(done, key=lambda pair: (not pair[1]["fits"], pair[1].get("predicted_step_seconds", float("inf"))))


def summary_line(plan: dict[str, Any]) -> str:
    """A short summary of a compiled plan."""
    held = f"{plan['hbm_bytes']['peak'] / 2**30:.2f} GiB"
    if "predicted_step_seconds" not in plan:
        return f"{held}, does not fit"
    fits = "fits" if plan["fits"] else "does not fit"
    return f"{held}, {fits}, {plan['predicted_step_seconds']:.4g} s a step, MFU {plan['predicted_mfu']:.1%}"


def _plan(experiment: str, topology: Any) -> dict[str, Any]:
    """Runs in a process of its own."""
    return plan(from_json(experiment), topology).json()
