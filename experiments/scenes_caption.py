"""scenes_caption: the sentence that describes an image of coloured shapes, generated."""

from mmjax.checkpoint.manager import Checkpoint
from mmjax.config.experiment import Experiment
from mmjax.config.train import Train
from mmjax.data.inputs import ImageInput, TextInput
from mmjax.data.loader import Data
from mmjax.data.sources.scenes import Scenes
from mmjax.data.tokenize import Bpe
from mmjax.encoders import ViT
from mmjax.fusion import SingleStream
from mmjax.generators import TextDecoder
from mmjax.model import Model
from mmjax.optim.optimizers import Muon
from mmjax.optim.schedules import Constant


def scenes_caption() -> Experiment:
    """Synthetic scenes captioned word by word."""
    return Experiment(
        name="scenes_caption",
        data=Data(
            source=Scenes(train=65536, speech=False),
            inputs={
                "image": ImageInput(size=64),
                "text": TextInput(length=24, tokenizer=Bpe(vocabulary=320)),
            },
        ),
        model=Model(
            width=128,
            encoders={"image": ViT(patch=8, depth=3)},
            fusion=SingleStream(depth=1),
            outputs={"text": TextDecoder(target="text", depth=2)},
        ),
        optimizer=Muon(learning_rate=3e-3, weight_decay=0.05, schedule=Constant(warmup=100)),
        train=Train(steps=3000, batch_size=64, evaluate_every=500),
        checkpoint=Checkpoint(every=500),
    )
