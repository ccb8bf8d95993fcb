"""interactions: which kinds of information about a label does a fusion of two modalities find?"""

from mmjax.checkpoint.manager import Checkpoint
from mmjax.config.experiment import Experiment
from mmjax.config.train import Train
from mmjax.data.inputs import ImageInput, LabelInput, TextInput
from mmjax.data.loader import Data
from mmjax.data.sources.interactions import CLASSES, MOST_CHARACTERS, SIDE, Interactions
from mmjax.encoders import TextTransformer, ViT
from mmjax.fusion import CrossAttention
from mmjax.heads import Classify
from mmjax.model import Model
from mmjax.optim.optimizers import Muon
from mmjax.optim.schedules import Constant


def interactions() -> Experiment:
    """Synthetic letters and bars that determine the label only together; trains in a minute on a laptop.

    `data.source.unique_a`, `unique_b`, `redundant` and `synergy` set how many bits of the label each part has; the
    source's `information` gives the exact decomposition. Where the label has unique and redundant bits,
    `model.modality_dropout=0.2` trains the model on single modalities, which the evaluation uses; pure synergy trains
    faster without it. A modality in another form needs another input and encoder, such as

        data.source.b=sound data.inputs.b=SpectrogramInput data.inputs.b.seconds=0.48
        model.encoders.b=AudioTransformer model.encoders.b.depth=1
    """
    return Experiment(
        name="interactions",
        data=Data(
            source=Interactions(),
            inputs={
                "a": TextInput(length=MOST_CHARACTERS + 1),
                "b": ImageInput(size=SIDE, channels=1),
                "label": LabelInput(names=CLASSES),
            },
            workers=0,  # examples are made faster than processes exchange them
        ),
        model=Model(
            width=64,
            encoders={"a": TextTransformer(depth=1), "b": ViT(patch=SIDE, depth=1)},
            fusion=CrossAttention(depth=1),
            outputs={"label": Classify(target="label")},
        ),
        optimizer=Muon(learning_rate=2e-3, schedule=Constant(warmup=50)),
        train=Train(steps=800, batch_size=128, evaluate_every=200),
        checkpoint=Checkpoint(every=400),
    )
