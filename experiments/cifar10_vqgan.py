"""cifar10_vqgan: small photographs as codes, with a critic and a perceptual distance."""

import chz

from mmjax.checkpoint.initialize import Initialize, Rename
from mmjax.config.experiment import Experiment
from mmjax.generators import VqGan
from mmjax.generators.perceptual import Perceptual
from mmjax.optim.optimizers import AdamW, Rule
from mmjax.optim.schedules import Cosine

from .cifar10_code import cifar10_code


def cifar10_vqgan() -> Experiment:
    """Photographs as 64 of 512 learned codes; needs a run of `cifar10_classify` as the classifier."""
    plain = cifar10_code()
    perceptual = Perceptual(stem=2, widths=(32, 64, 128), depths=(1, 2, 2))
    return chz.replace(
        plain,
        name="cifar10_vqgan",
        model=chz.replace(
            plain.model, outputs={"image": VqGan(target="image", widths=(32, 64), perceptual=perceptual)}
        ),
        optimizer=AdamW(
            learning_rate=1e-3, schedule=Cosine(warmup=100), rules=(Rule(pattern="*/judge/*", freeze=True),)
        ),
        train=chz.replace(
            plain.train,
            steps=2000,
            initialize=Initialize(
                run_dir="runs/cifar10_classify",
                include="*/judge/*",
                rename=(Rename(old="encoders/image/trunk", new="outputs/image/perceptual/judge"),),
            ),
        ),
    )
