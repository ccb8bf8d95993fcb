"""Export a trained model, to be used without mmjax or elsewhere.

    python -m launch.export RUN_DIR out=DIR [format=stablehlo,safetensors,onnx,huggingface] [quantize=int8]

The run may be finished or still going on; its data set need not be there. The last line on standard output is the path
of export.json, which lists the files. `mmjax.load(DIR)` opens the folder as it opens a run directory.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import chz

from . import command_line
from .huge_pages import prefer_huge_pages


@chz.chz
class Export:
    """Which checkpoint is exported, in which formats, and where it goes."""

    run_dir: str = chz.field(doc="the run whose model it is")
    out: str | None = chz.field(
        default=None, doc="the new folder, in place of an earlier export; None: export in the run directory"
    )
    format: tuple[Literal["stablehlo", "safetensors", "onnx", "huggingface"], ...] = chz.field(
        default=("stablehlo", "safetensors"), doc="what is written; the parameters as safetensors always are"
    )
    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = chz.field(
        default=("cpu", "cuda", "tpu"), doc="what StableHLO is lowered for"
    )
    quantize: Literal["int8"] | None = chz.field(
        default=None, doc="int8: large parameters as int8 with scales, a quarter of the bytes; None: as they are"
    )
    what: tuple[Literal["embed", "predict", "generate"], ...] | None = chz.field(
        default=None, doc="the functions that StableHLO and ONNX have; None: all that the run has"
    )
    step: int | None = chz.field(default=None, doc="the checkpoint; None: the newest")
    license: str | None = chz.field(
        default=None, doc="the licence of the parameters, for the model card, such as apache-2.0"
    )

    @chz.validate
    def _some(self) -> None:
        for name in ("format", "platforms", "what"):
            values = getattr(self, name)
            if values is not None and (not values or len({*values}) < len(values)):
                raise ValueError(f"{name} must name something, and nothing twice")


def export(request: Export) -> Path:
    """Exports as requested; returns the path of the list of files."""
    from mmjax.export.folder import export_run

    return export_run(
        request.run_dir,
        request.out or f"{request.run_dir.rstrip('/')}/export",
        formats=request.format,
        what=request.what,
        platforms=request.platforms,
        quantize=request.quantize,
        step=request.step,
        license=request.license,
        say=command_line.say,
    )


SUBJECTS = command_line.Subjects(
    "run_dir", command_line.runs, lambda run_dir: Export(run_dir=run_dir), others=True, keys=Export
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return command_line.main(export, "Export a trained model, to be used elsewhere.", argv, SUBJECTS)


if __name__ == "__main__":
    prefer_huge_pages()
    sys.exit(main())
