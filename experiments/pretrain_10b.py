"""pretrain_10b: pretrain_300m at the size of a pod."""

from mmjax.config.experiment import Experiment

from .pretrain_300m import pretrain


def pretrain_10b() -> Experiment:
    """For 1,024 chips or more: v5p:8x8x16, or four slices of v5e:16x16 with less memory per chip.

    On the latter with `mesh.replica=4 mesh.data=4 mesh.fsdp=64 model.remat=full`.
    """
    return pretrain("pretrain_10b", width=4096, heads=32, depth=8, exchange=3, writing=4, batch_size=16384, fsdp=256)
