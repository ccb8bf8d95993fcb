"""vocoder: waveforms of spoken digits from their log-mel frames."""

from mmjax.checkpoint.manager import Checkpoint
from mmjax.config.experiment import Experiment
from mmjax.config.train import Train
from mmjax.data.audio_inputs import SpectrogramInput, WaveformInput
from mmjax.data.loader import Data
from mmjax.data.sources.av_digits import AvDigits
from mmjax.encoders import AudioTransformer
from mmjax.fusion import Concat
from mmjax.generators import Vocoder
from mmjax.model import Model
from mmjax.optim.optimizers import AdamW, Muon
from mmjax.optim.schedules import Constant, Cosine


def vocoder() -> Experiment:
    """The Free Spoken Digit Dataset, from spectrograms like those of scenes_speech to waveforms."""
    return Experiment(
        name="vocoder",
        data=Data(
            source=AvDigits(noise="clean"),
            inputs={
                # Nineteen in twenty recordings are shorter.
                "speech": SpectrogramInput(seconds=0.7, window=0.05, hop=0.0125, bands=48),
                "wave": WaveformInput(field="speech", seconds=0.7),
            },
        ),
        model=Model(
            width=16,
            # The vocoder does not read tokens, so the encoders are never computed.
            encoders={"speech": AudioTransformer(depth=1)},
            fusion=Concat(hidden=16),
            outputs={"wave": Vocoder(target="wave", mel="speech", factors=(5, 5), kernels=(3, 7), dilations=(1, 3))},
        ),
        optimizer=Muon(learning_rate=5e-3, weight_decay=0.0, schedule=Cosine(warmup=50)),
        critic_optimizer=AdamW(learning_rate=3e-4, b1=0.8, b2=0.99, schedule=Constant(warmup=100, cooldown=0.0)),
        train=Train(steps=3000, batch_size=16, evaluate_every=1500, evaluate_examples=256),
        checkpoint=Checkpoint(every=1000),
    )
