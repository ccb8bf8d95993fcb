"""emoji_classify: the Unicode group of an emoji; the classifier also scores emoji_paint's images."""

from mmjax.checkpoint.manager import Checkpoint
from mmjax.config.experiment import Experiment
from mmjax.config.train import Train
from mmjax.data.augment import ImageAugment
from mmjax.data.inputs import ImageInput, LabelInput
from mmjax.data.loader import Data
from mmjax.data.sources.emoji import GROUPS, Emoji
from mmjax.encoders import ConvNet
from mmjax.fusion import AttentionPool
from mmjax.heads import Classify
from mmjax.model import Model
from mmjax.optim.optimizers import Muon
from mmjax.optim.schedules import Constant


def emoji_classify() -> Experiment:
    """Emoji classified by a convolutional network."""
    return Experiment(
        name="emoji_classify",
        data=Data(
            source=Emoji(),
            inputs={
                "image": ImageInput(size=32, augment=ImageAugment(flip=0.5, crop=0.1, rotate=10, scale=0.1)),
                "group": LabelInput(names=GROUPS),
            },
        ),
        model=Model(
            width=128,
            encoders={"image": ConvNet(stem=2, widths=(32, 64, 128), depths=(1, 2, 2))},
            fusion=AttentionPool(),
            outputs={"group": Classify(target="group", smoothing=0.1)},
            dropout=0.1,
        ),
        optimizer=Muon(learning_rate=3e-3, weight_decay=0.05, schedule=Constant(warmup=100)),
        train=Train(steps=1000, batch_size=64, evaluate_every=250),
        checkpoint=Checkpoint(every=500),
    )
