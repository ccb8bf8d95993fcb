"""emoji_name: the name of an emoji, generated from its image."""

from mmjax.checkpoint.manager import Checkpoint
from mmjax.config.experiment import Experiment
from mmjax.config.train import Train
from mmjax.data.augment import ImageAugment
from mmjax.data.inputs import ImageInput, TextInput
from mmjax.data.loader import Data
from mmjax.data.sources.emoji import Emoji
from mmjax.data.tokenize import Bpe
from mmjax.encoders import ConvNet
from mmjax.fusion import SingleStream
from mmjax.generators import TextDecoder
from mmjax.model import Model
from mmjax.optim.optimizers import Muon
from mmjax.optim.schedules import Constant


def emoji_name() -> Experiment:
    """Emoji captioned with their Unicode names."""
    return Experiment(
        name="emoji_name",
        data=Data(
            source=Emoji(skin_tones="all"),
            inputs={
                "image": ImageInput(size=64, augment=ImageAugment(crop=0.1, rotate=10, scale=0.1)),
                "text": TextInput(length=32, tokenizer=Bpe(vocabulary=1024)),
            },
        ),
        model=Model(
            width=128,
            encoders={"image": ConvNet(stem=4, widths=(32, 64, 128), depths=(1, 2, 2))},
            fusion=SingleStream(depth=1),
            outputs={"text": TextDecoder(target="text", depth=2)},
            dropout=0.1,
        ),
        optimizer=Muon(learning_rate=2e-3, weight_decay=0.05, schedule=Constant(warmup=100)),
        train=Train(steps=1500, batch_size=32, evaluate_every=500),
        checkpoint=Checkpoint(every=500),
    )
