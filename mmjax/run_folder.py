"""A trained run opened for reading: a run directory, or an export of one."""

from pathlib import Path

from mmjax.checkpoint.exported import CONFIG, ExportedCheckpoint, is_export, load_tokenizers
from mmjax.checkpoint.restore import restore_model, saved_steps
from mmjax.config import experiment_file
from mmjax.data.loader import Data
from mmjax.files import read_json, to_path
from mmjax.model import Model, Multimodal
from mmjax.sharding.rules import Rules
from mmjax.types import Feature


class RunFolder:
    """The experiment of a run, its tokenizers and its checkpoints; an export has one.

    Attributes:
        path: the folder.
        experiment: the run's configuration.
    """

    def __init__(self, run_dir: str | Path):
        """Raises UserError where it is neither, or is damaged."""
        self.path = to_path(run_dir)
        self._exported = ExportedCheckpoint(run_dir) if is_export(run_dir) else None
        self.experiment = experiment_file.read(run_dir, experiment_file.FILE if self._exported is None else CONFIG)

    @property
    def steps(self) -> list[int]:
        """The steps of the finished checkpoints, oldest first, damaged ones included."""
        return saved_steps(self.path) if self._exported is None else [self._exported.step]

    @property
    def is_complete(self) -> bool:
        """Whether no checkpoint is to come: the run has taken all its steps."""
        if self._exported is not None:
            return True
        try:
            return read_json(self.path / "summary.json")["step"] >= self.experiment.train.steps
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def load_data(self) -> Data:
        """The experiment's data with the tokenizers that the run was trained with."""
        data = self.experiment.data
        if self._exported is not None:
            return load_tokenizers(data, self.path)
        return data.fit_tokenizers(self.experiment.data_dir, self.path)

    def restore(
        self, model: Model, features: dict[str, Feature], rules: Rules, step: int | None = None
    ) -> tuple[Multimodal, int]:
        """The model of a checkpoint, the newest by default, on the current mesh, and the checkpoint's step.

        It has the moving average of the parameters, where the run keeps one.

        Args:
            model: the experiment's, or one with the same parameters.
            features: those of the data.
            rules: how parameters are split over the mesh.
            step: which checkpoint.

        Raises:
            UserError: there is no such checkpoint.
            NoCheckpoint: the run has removed it.
        """
        if self._exported is not None:
            step = self._exported.find(step)
            return self._exported.restore_model(model, features, rules), step
        ema = self.experiment.train.ema is not None
        return restore_model(model, self.path, features, rules, step, ema=ema)
