"""scenes: images of coloured shapes with their descriptions, written and spoken."""

from mmjax.checkpoint.manager import Checkpoint
from mmjax.config.experiment import Experiment
from mmjax.config.train import Train
from mmjax.data.audio_inputs import SpectrogramInput
from mmjax.data.augment import SpectrogramAugment
from mmjax.data.inputs import ImageInput, LabelInput, TextInput, VectorInput
from mmjax.data.loader import Data
from mmjax.data.sources.drawing import COLOURS, COUNTS, SHAPES, SIZES
from mmjax.data.sources.scenes import Scenes
from mmjax.data.tokenize import Bpe
from mmjax.encoders import AudioTransformer, TextTransformer, ViT
from mmjax.fusion import CrossAttention
from mmjax.heads import Classify, Contrast, Regress
from mmjax.model import Model
from mmjax.optim.optimizers import AdamW
from mmjax.optim.schedules import Cosine


def scenes() -> Experiment:
    """Synthetic scenes in three modalities: needs no download and trains in five minutes on a laptop."""
    return Experiment(
        name="scenes",
        data=Data(
            source=Scenes(),
            inputs={
                "image": ImageInput(size=64),
                "text": TextInput(length=24, tokenizer=Bpe(vocabulary=320)),
                "speech": SpectrogramInput(
                    seconds=3.4, hop=0.02, bands=40, augment=SpectrogramAugment(time_masks=1, band_masks=1)
                ),
                "shape": LabelInput(names=SHAPES, slots=3),
                "colour": LabelInput(names=COLOURS, slots=3),
                "size": LabelInput(names=SIZES, slots=3),
                "count": LabelInput(names=COUNTS),
                "position": VectorInput(size=2, slots=3),
            },
        ),
        model=Model(
            width=128,
            encoders={
                "image": ViT(patch=16, depth=3),
                "text": TextTransformer(depth=2),
                "speech": AudioTransformer(convolutions=3, depth=1),
            },
            fusion=CrossAttention(depth=1),
            outputs={
                "shape": Classify(target="shape"),
                "colour": Classify(target="colour"),
                "size": Classify(target="size"),
                "count": Classify(target="count", weight=0.5),
                "position": Regress(target="position", weight=0.2),
                "image_text": Contrast(first="image", second="text", kind="infonce"),
                "speech_text": Contrast(first="speech", second="text", kind="infonce"),
            },
            modality_dropout=0.2,
        ),
        optimizer=AdamW(learning_rate=1e-3, weight_decay=0.05, schedule=Cosine(warmup=100)),
        train=Train(steps=600, batch_size=64, evaluate_every=300),
        checkpoint=Checkpoint(every=300),
    )
