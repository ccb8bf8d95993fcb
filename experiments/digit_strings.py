"""digit_strings: numbers of one to four digits, handwritten, spoken and in words."""

from mmjax.checkpoint.manager import Checkpoint
from mmjax.config.experiment import Experiment
from mmjax.config.train import Train
from mmjax.data.audio_inputs import SpectrogramInput
from mmjax.data.inputs import ImageInput, TextInput
from mmjax.data.loader import Data
from mmjax.data.sources.digit_strings import MOST_DIGITS, SIDE, DigitStrings
from mmjax.encoders import AudioTransformer, TextTransformer, ViT
from mmjax.fusion import SingleStream
from mmjax.generators import CodeDecoder, SpeechVae, TextDecoder
from mmjax.generators.codes import Codebook
from mmjax.model import Model
from mmjax.optim.optimizers import Muon
from mmjax.optim.schedules import Constant


def digit_strings() -> Experiment:
    """Real digits concatenated to numbers: one model generates each modality from the others."""
    return Experiment(
        name="digit_strings",
        data=Data(
            source=DigitStrings(),
            inputs={
                "image": ImageInput(size=SIDE, width=MOST_DIGITS * SIDE, channels=1),
                "speech": SpectrogramInput(seconds=3.0, window=0.05, hop=0.0125, bands=48),
                "text": TextInput(length=24),
            },
        ),
        model=Model(
            width=128,
            encoders={
                "image": ViT(patch=14, depth=2),
                "speech": AudioTransformer(depth=2),
                "text": TextTransformer(depth=2),
            },
            fusion=SingleStream(depth=1),
            outputs={
                "text": TextDecoder(target="text", depth=2),
                "image": CodeDecoder(
                    target="image", quantizer=Codebook(size=256, width=8), widths=(16, 32, 64), depth=2
                ),
                "speech": SpeechVae(target="speech", text="text", depth=3, couplings=2, warmup=500),
            },
            # Every modality is also generated from each single one.
            modality_dropout=0.5,
        ),
        optimizer=Muon(learning_rate=2e-3, weight_decay=0.05, schedule=Constant(warmup=100)),
        train=Train(steps=4000, batch_size=32, evaluate_every=1000),
        checkpoint=Checkpoint(every=1000),
    )
