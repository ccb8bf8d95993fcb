"""digit_strings_classify: handwritten or spoken numbers, digit by digit; scores generated ones."""

from mmjax.checkpoint.manager import Checkpoint
from mmjax.config.experiment import Experiment
from mmjax.config.train import Train
from mmjax.data.audio_inputs import SpectrogramInput
from mmjax.data.augment import ImageAugment, SpectrogramAugment
from mmjax.data.inputs import ImageInput, LabelInput
from mmjax.data.loader import Data
from mmjax.data.sources.av_digits import CLASSES
from mmjax.data.sources.digit_strings import MOST_DIGITS, SIDE, DigitStrings
from mmjax.encoders import AudioTransformer, ViT
from mmjax.fusion import SingleStream
from mmjax.heads import Classify
from mmjax.model import Model
from mmjax.optim.optimizers import Muon
from mmjax.optim.schedules import Constant


def digit_strings_classify() -> Experiment:
    """The digits of numbers, from the image alone and from the recording alone."""
    return Experiment(
        name="digit_strings_classify",
        data=Data(
            source=DigitStrings(),
            inputs={
                "image": ImageInput(
                    size=SIDE,
                    width=MOST_DIGITS * SIDE,
                    channels=1,
                    augment=ImageAugment(crop=0.03, rotate=3, scale=0.05),
                ),
                "speech": SpectrogramInput(
                    seconds=3.0,
                    window=0.05,
                    hop=0.0125,
                    bands=48,
                    augment=SpectrogramAugment(noise=0.1, time_masks=2, time_share=0.05, band_masks=1),
                ),
                "digits": LabelInput(names=CLASSES, slots=MOST_DIGITS),
            },
        ),
        model=Model(
            width=128,
            encoders={"image": ViT(patch=7, depth=2), "speech": AudioTransformer(convolutions=3, depth=2)},
            fusion=SingleStream(depth=1),
            outputs={"digits": Classify(target="digits", smoothing=0.05)},
            dropout=0.1,
            # Each is to be read by itself, too.
            modality_dropout=0.6,
        ),
        optimizer=Muon(learning_rate=3e-3, weight_decay=0.05, schedule=Constant(warmup=100)),
        train=Train(steps=1500, batch_size=64, evaluate_every=500),
        checkpoint=Checkpoint(every=500),
    )
