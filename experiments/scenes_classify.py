"""scenes_classify: classification of the shapes in an image; scores the images of other runs."""

from mmjax.checkpoint.manager import Checkpoint
from mmjax.config.experiment import Experiment
from mmjax.config.train import Train
from mmjax.data.inputs import ImageInput, LabelInput
from mmjax.data.loader import Data
from mmjax.data.sources.drawing import COLOURS, COUNTS, SHAPES, SIZES
from mmjax.data.sources.scenes import Scenes
from mmjax.encoders import ViT
from mmjax.fusion import SingleStream
from mmjax.heads import Classify
from mmjax.model import Model
from mmjax.optim.optimizers import Muon
from mmjax.optim.schedules import Constant


def scenes_classify() -> Experiment:
    """Shape, colour and size of every shape, in the sentence's order, and their number."""
    labels = {
        "shape": LabelInput(names=SHAPES, slots=3),
        "colour": LabelInput(names=COLOURS, slots=3),
        "size": LabelInput(names=SIZES, slots=3),
        "count": LabelInput(names=COUNTS),
    }
    return Experiment(
        name="scenes_classify",
        data=Data(
            source=Scenes(train=65536, speech=False),
            inputs={"image": ImageInput(size=64), **labels},
        ),
        model=Model(
            width=128,
            encoders={"image": ViT(patch=8, depth=3)},
            fusion=SingleStream(depth=1),
            outputs={name: Classify(target=name) for name in labels},
        ),
        optimizer=Muon(learning_rate=3e-3, weight_decay=0.05, schedule=Constant(warmup=100)),
        train=Train(steps=2000, batch_size=64, evaluate_every=500),
        checkpoint=Checkpoint(every=500),
    )
