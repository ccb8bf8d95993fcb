"""av_digits: classification of a digit from its image and its recording."""

from mmjax.checkpoint.manager import Checkpoint
from mmjax.config.experiment import Experiment
from mmjax.config.train import Train
from mmjax.data.audio_inputs import SpectrogramInput
from mmjax.data.augment import SpectrogramAugment
from mmjax.data.inputs import ImageInput, LabelInput
from mmjax.data.loader import Data
from mmjax.data.sources.av_digits import CLASSES, AvDigits
from mmjax.encoders import AudioTransformer, ViT
from mmjax.fusion import CrossAttention
from mmjax.heads import Classify
from mmjax.model import Model
from mmjax.optim.optimizers import Muon
from mmjax.optim.schedules import Cosine


def av_digits() -> Experiment:
    """Noisy real digits: MNIST images with FSDD recordings."""
    return Experiment(
        name="av_digits",
        data=Data(
            source=AvDigits(),
            inputs={
                "image": ImageInput(size=28, channels=1),
                "speech": SpectrogramInput(
                    seconds=1.0, hop=0.0125, bands=40, augment=SpectrogramAugment(time_masks=2, band_masks=2)
                ),
                "label": LabelInput(names=CLASSES),
            },
        ),
        model=Model(
            width=96,
            encoders={"image": ViT(patch=14, depth=1), "speech": AudioTransformer(depth=2)},
            fusion=CrossAttention(depth=1),
            outputs={"label": Classify(target="label", smoothing=0.1)},
            dropout=0.1,
            modality_dropout=0.2,
        ),
        optimizer=Muon(learning_rate=5e-3, weight_decay=0.05, schedule=Cosine(warmup=50)),
        train=Train(steps=1720, batch_size=128, ablation_steps=320, evaluate_every=430),
        checkpoint=Checkpoint(every=430),
    )
