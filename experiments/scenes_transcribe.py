"""scenes_transcribe: transcription of spoken sentences; transcribes other runs' speech."""

from mmjax.checkpoint.manager import Checkpoint
from mmjax.config.experiment import Experiment
from mmjax.config.train import Train
from mmjax.data.audio_inputs import SpectrogramInput
from mmjax.data.augment import SpectrogramAugment
from mmjax.data.inputs import TextInput
from mmjax.data.loader import Data
from mmjax.data.sources.scenes import Scenes
from mmjax.data.tokenize import Bpe
from mmjax.encoders import AudioTransformer
from mmjax.fusion import SingleStream
from mmjax.generators import TextDecoder
from mmjax.model import Model
from mmjax.optim.optimizers import Muon
from mmjax.optim.schedules import Constant


def scenes_transcribe() -> Experiment:
    """Synthetic speech of many voices, transcribed."""
    return Experiment(
        name="scenes_transcribe",
        data=Data(
            source=Scenes(train=8192),
            inputs={
                "speech": SpectrogramInput(
                    seconds=3.4,
                    window=0.05,
                    hop=0.0125,
                    bands=48,
                    augment=SpectrogramAugment(noise=0.1, time_masks=2, time_share=0.05, band_masks=1),
                ),
                "text": TextInput(length=24, tokenizer=Bpe(vocabulary=320)),
            },
        ),
        model=Model(
            width=128,
            encoders={"speech": AudioTransformer(convolutions=3, depth=2)},
            fusion=SingleStream(depth=1),
            outputs={"text": TextDecoder(target="text", depth=2)},
            dropout=0.1,
        ),
        optimizer=Muon(learning_rate=3e-3, weight_decay=0.05, schedule=Constant(warmup=100)),
        train=Train(steps=2000, batch_size=64, evaluate_every=500),
        checkpoint=Checkpoint(every=500),
    )
