"""cifar10_vae: small photographs as Gaussians at as many places as cifar10_code has codes, and back."""

import chz

from mmjax.config.experiment import Experiment
from mmjax.generators import Vae

from .cifar10_code import cifar10_code


def cifar10_vae() -> Experiment:
    """Real photographs as 64 places of 8 numbers: what quantising to codes is measured by."""
    plain = cifar10_code()
    vae = Vae(target="image", latent=8, widths=(32, 64), conditional=False, beta=4.8)
    return chz.replace(plain, name="cifar10_vae", model=chz.replace(plain.model, outputs={"image": vae}))
