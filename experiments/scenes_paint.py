"""scenes_paint: an image of coloured shapes, generated from the sentence that describes it."""

from mmjax.checkpoint.manager import Checkpoint
from mmjax.config.experiment import Experiment
from mmjax.config.train import Train
from mmjax.data.inputs import ImageInput, TextInput
from mmjax.data.loader import Data
from mmjax.data.sources.scenes import Scenes
from mmjax.data.tokenize import Bpe
from mmjax.encoders import TextTransformer
from mmjax.fusion import SingleStream
from mmjax.generators import CodeDecoder
from mmjax.generators.codes import Codebook
from mmjax.model import Model
from mmjax.optim.optimizers import Muon
from mmjax.optim.schedules import Constant


def scenes_paint() -> Experiment:
    """Synthetic scenes generated from a sentence, code by code."""
    return Experiment(
        name="scenes_paint",
        data=Data(
            source=Scenes(train=65536, speech=False),
            inputs={
                "image": ImageInput(size=64),
                "text": TextInput(length=24, tokenizer=Bpe(vocabulary=320)),
            },
        ),
        model=Model(
            width=128,
            encoders={"text": TextTransformer(depth=2)},
            fusion=SingleStream(depth=1),
            outputs={
                "image": CodeDecoder(
                    target="image", quantizer=Codebook(size=512), widths=(24, 48, 96), depth=4, heads=4
                )
            },
        ),
        optimizer=Muon(learning_rate=2e-3, weight_decay=0.05, schedule=Constant(warmup=100)),
        train=Train(steps=5000, batch_size=32, evaluate_every=1000),
        checkpoint=Checkpoint(every=1000),
    )
