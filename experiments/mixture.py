"""mixture: one model of scenes, emoji and spoken digits, with packed texts and recordings."""

from mmjax.checkpoint.manager import Checkpoint
from mmjax.config.experiment import Experiment
from mmjax.config.train import Train
from mmjax.data.audio_inputs import SpectrogramInput
from mmjax.data.augment import ImageAugment, SpectrogramAugment
from mmjax.data.batching.packing import PackedRows, Packing
from mmjax.data.inputs import ImageInput, LabelInput, TextInput
from mmjax.data.loader import Data
from mmjax.data.mixture import Mixture, MixtureSource, MixtureStage
from mmjax.data.sources.av_digits import CLASSES, AvDigits
from mmjax.data.sources.drawing import COLOURS, COUNTS, SHAPES
from mmjax.data.sources.emoji import Emoji
from mmjax.data.sources.scenes import Scenes
from mmjax.data.tokenize import Bpe
from mmjax.encoders import AudioTransformer, ConvNet, TextTransformer
from mmjax.fusion import CrossAttention
from mmjax.heads import Classify, Contrast
from mmjax.model import Model
from mmjax.optim.optimizers import AdamW
from mmjax.optim.schedules import Cosine

LABELS = ("shape", "colour", "count")


def _without(*fields: str) -> dict[str, str | None]:
    """Says of a source that it does not have these fields."""
    return dict.fromkeys(fields)


def mixture() -> Experiment:
    """Three sources with different modalities: what an example lacks is absent."""
    return Experiment(
        name="mixture",
        data=Data(
            source=Mixture(
                sources={
                    "scenes": MixtureSource(source=Scenes(), weight=0.6, fields={"digit": None}),
                    "emoji": MixtureSource(
                        source=Emoji(skin_tones="all"), weight=0.2, fields=_without("speech", *LABELS, "digit")
                    ),
                    # The recordings of FSDD; the digits' images are left out.
                    "digits": MixtureSource(
                        source=AvDigits(noise="clean"),
                        weight=0.2,
                        fields={**_without("image", "text", *LABELS), "digit": "label"},
                    ),
                },
                # Emoji need the most steps, digits the fewest.
                stages=(MixtureStage(start=500, weights={"scenes": 0.4, "emoji": 0.5, "digits": 0.1}),),
            ),
            inputs={
                "image": ImageInput(size=64, augment=ImageAugment(crop=0.05, rotate=5)),
                "text": TextInput(length=24, tokenizer=Bpe(vocabulary=1024)),
                "speech": SpectrogramInput(
                    seconds=3.4, hop=0.02, bands=40, augment=SpectrogramAugment(time_masks=1, band_masks=1)
                ),
                "shape": LabelInput(names=SHAPES, slots=3),
                "colour": LabelInput(names=COLOURS, slots=3),
                "count": LabelInput(names=COUNTS),
                "digit": LabelInput(names=CLASSES),
            },
            packing=Packing(
                features={"text": PackedRows(length=40), "speech": PackedRows(length=352, multiple=8)},
                window=32,
                parts=2,  # so that one or two devices can share a batch
            ),
        ),
        model=Model(
            width=128,
            encoders={
                "image": ConvNet(stem=4, widths=(32, 64, 128), depths=(1, 1, 1)),
                "text": TextTransformer(depth=2),
                "speech": AudioTransformer(convolutions=3, depth=2),
            },
            fusion=CrossAttention(depth=1),
            outputs={
                "shape": Classify(target="shape"),
                "colour": Classify(target="colour"),
                "count": Classify(target="count", weight=0.5),
                "digit": Classify(target="digit"),
                "image_text": Contrast(first="image", second="text", kind="infonce"),
                "speech_text": Contrast(first="speech", second="text", kind="infonce"),
            },
            modality_dropout=0.2,
        ),
        optimizer=AdamW(learning_rate=1e-3, weight_decay=0.05, schedule=Cosine(warmup=100)),
        train=Train(steps=1500, batch_size=64, evaluate_every=500),
        checkpoint=Checkpoint(every=250),
    )
