"""cifar10_code: small photographs as discrete codes, a tokenizer of images."""

from mmjax.checkpoint.manager import Checkpoint
from mmjax.config.experiment import Experiment
from mmjax.config.train import Train
from mmjax.data.inputs import ImageInput
from mmjax.data.loader import Data
from mmjax.data.sources.cifar10 import Cifar10
from mmjax.encoders import ConvNet
from mmjax.fusion import Concat
from mmjax.generators import VqVae
from mmjax.generators.codes import Fsq
from mmjax.model import Model
from mmjax.optim.optimizers import Muon
from mmjax.optim.schedules import Cosine


def cifar10_code() -> Experiment:
    """Photographs as 64 codes out of 512, 576 bits each."""
    return Experiment(
        name="cifar10_code",
        data=Data(source=Cifar10(), inputs={"image": ImageInput(size=32)}),
        model=Model(
            width=16,
            # A tokenizer does not read tokens, so the encoders are never computed.
            encoders={"image": ConvNet(stem=8, widths=(16,), depths=(1,))},
            fusion=Concat(hidden=16),
            outputs={"image": VqVae(target="image", quantizer=Fsq(), widths=(32, 64))},
        ),
        optimizer=Muon(learning_rate=5e-3, schedule=Cosine(warmup=100)),
        train=Train(steps=3000, batch_size=64, evaluate_every=1000),
        checkpoint=Checkpoint(every=1000),
    )
