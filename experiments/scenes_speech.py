"""scenes_speech: a sentence about coloured shapes, spoken in the voice of a short example."""

from mmjax.checkpoint.manager import Checkpoint
from mmjax.config.experiment import Experiment
from mmjax.config.train import Train
from mmjax.data.audio_inputs import SpectrogramInput
from mmjax.data.inputs import TextInput
from mmjax.data.loader import Data
from mmjax.data.sources.scenes import Scenes
from mmjax.encoders import AudioTransformer, TextTransformer
from mmjax.fusion import SingleStream
from mmjax.generators import SpeechVae
from mmjax.model import Model
from mmjax.optim.optimizers import Muon
from mmjax.optim.schedules import Constant


def scenes_speech() -> Experiment:
    """Sentences read aloud, letter by letter, in the voice of half a second of a recording."""
    frames = {"window": 0.05, "hop": 0.0125, "bands": 48}
    return Experiment(
        name="scenes_speech",
        data=Data(
            source=Scenes(train=8192),
            inputs={
                "text": TextInput(length=87),
                "voice": SpectrogramInput(field="speech", seconds=0.5, **frames),
                "speech": SpectrogramInput(seconds=3.4, **frames),
            },
        ),
        model=Model(
            width=128,
            encoders={"text": TextTransformer(depth=2), "voice": AudioTransformer(depth=1)},
            fusion=SingleStream(depth=1),
            outputs={"speech": SpeechVae(target="speech", text="text", warmup=500)},
        ),
        optimizer=Muon(learning_rate=2e-3, weight_decay=0.05, schedule=Constant(warmup=100)),
        train=Train(steps=3000, batch_size=32, evaluate_every=1000),
        checkpoint=Checkpoint(every=1000),
    )
