"""pretrain_2b: a larger pretrain_300m."""

from mmjax.config.experiment import Experiment

from .pretrain_300m import pretrain


def pretrain_2b() -> Experiment:
    """For 256 chips or more: a slice of v5e:16x16, or several with mesh.replica."""
    return pretrain("pretrain_2b", width=2048, heads=16, depth=6, exchange=2, writing=2, batch_size=5120, fsdp=64)
