"""cifar10_classify: classification of small photographs; the classifier also scores generated ones."""

from mmjax.checkpoint.manager import Checkpoint
from mmjax.config.experiment import Experiment
from mmjax.config.train import Train
from mmjax.data.augment import ImageAugment
from mmjax.data.inputs import ImageInput, LabelInput
from mmjax.data.loader import Data
from mmjax.data.sources.cifar10 import CLASSES, Cifar10
from mmjax.encoders import ConvNet
from mmjax.fusion import AttentionPool
from mmjax.heads import Classify
from mmjax.model import Model
from mmjax.optim.optimizers import Muon
from mmjax.optim.schedules import Constant


def cifar10_classify() -> Experiment:
    """Real photographs classified by a convolutional network."""
    return Experiment(
        name="cifar10_classify",
        data=Data(
            source=Cifar10(),
            inputs={
                "image": ImageInput(size=32, augment=ImageAugment(flip=0.5, crop=0.125)),
                "label": LabelInput(names=CLASSES),
            },
        ),
        model=Model(
            width=128,
            encoders={"image": ConvNet(stem=2, widths=(32, 64, 128), depths=(1, 2, 2))},
            fusion=AttentionPool(),
            outputs={"label": Classify(target="label", smoothing=0.1)},
        ),
        optimizer=Muon(learning_rate=5e-3, weight_decay=0.05, schedule=Constant(warmup=100)),
        train=Train(steps=3000, batch_size=128, evaluate_every=1000),
        checkpoint=Checkpoint(every=1000),
    )
