"""StableHLO by `jax.export`: a serialized function for several platforms and any number of examples."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax import export

from mmjax.errors import UserError
from mmjax.export.functions import BATCH, Function, argument_types
from mmjax.inference import TrainedRun

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_stablehlo(
    run: TrainedRun, function: Function, parameters: Mapping[str, Any], platforms: Sequence[str]
) -> export.Exported:
    """The function of such parameters, lowered for these platforms with a symbolic number of examples.

    It is traced without a mesh: what comes out knows nothing of shardings and runs on one device.

    Raises UserError, naming the platform if it is one, where it cannot be lowered.
    """
    try:
        return _export(run, function, parameters, platforms)
    except UserError:
        raise
    except Exception as error:  # a kernel, a lowering rule or an undecided size: each raises its own
        able = [platform for platform in platforms if len(platforms) > 1 and _can(run, function, parameters, platform)]
        unable = [platform for platform in platforms if platform not in able]
        where = f"for platforms={','.join(unable)}"
        fix = f"export for {','.join(able)} alone" if able else "leave it out by what="
        raise UserError(f"{function.name} cannot be exported {where}: {_reason(error)}; {fix}") from error


def _can(run: TrainedRun, function: Function, parameters: Mapping[str, Any], platform: str) -> bool:
    try:
        _export(run, function, parameters, [platform])
    except Exception:
        return False
    return True


def _export(
    run: TrainedRun, function: Function, parameters: Mapping[str, Any], platforms: Sequence[str]
) -> export.Exported:
    arguments = argument_types(run, function, parameters, export.symbolic_shape(BATCH)[0])
    return export.export(jax.jit(function.call), platforms=list(platforms))(*arguments)


def _reason(error: Exception) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(".")
