"""interactions: which kinds of information about a label, spread over two modalities, does a fusion find?"""

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
    """Made-up letters and bars whose label only both together tell; learns in a minute on a laptop.

    `data.source.unique_a`, `unique_b`, `redundant` and `synergy` say who tells how many bits of the label; the source's
    `information` says what that comes to. Where the label has unique and redundant bits, `model.modality_dropout=0.2`
    teaches the model what each tells alone, which is asked of it in the end; pure synergy is learned faster without. A
    modality of another form wants another input and encoder, such as

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
        ),
        model=Model(
            width=64,
            dtype="float32",
            encoders={"a": TextTransformer(depth=1), "b": ViT(patch=SIDE, depth=1)},
            fusion=CrossAttention(depth=1),
            outputs={"label": Classify(target="label")},
            unroll=True,
        ),
        optimizer=Muon(learning_rate=2e-3, schedule=Constant(warmup=50)),
        train=Train(steps=800, batch_size=128, evaluate_every=200),
        checkpoint=Checkpoint(every=400),
    )
