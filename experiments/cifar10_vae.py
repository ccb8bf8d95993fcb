"""cifar10_vae: small photographs as a grid of Gaussians with as many cells as cifar10_code has codes."""

import chz

from mmjax.config.experiment import Experiment
from mmjax.generators import Vae

from .cifar10_code import cifar10_code


def cifar10_vae() -> Experiment:
    """Photographs as 64 cells of 8 numbers: the baseline for quantized codes."""
    plain = cifar10_code()
    vae = Vae(target="image", latent=8, widths=(32, 64), conditional=False, beta=4.8)
    return chz.replace(plain, name="cifar10_vae", model=chz.replace(plain.model, outputs={"image": vae}))
