"""emoji_paint: the image of an emoji, generated from its name."""

from mmjax.checkpoint.manager import Checkpoint
from mmjax.config.experiment import Experiment
from mmjax.config.train import Train
from mmjax.data.inputs import ImageInput, TextInput
from mmjax.data.loader import Data
from mmjax.data.sources.emoji import Emoji
from mmjax.data.tokenize import Bpe
from mmjax.encoders import TextTransformer
from mmjax.fusion import SingleStream
from mmjax.generators import Gan
from mmjax.generators.adversary import Adversary
from mmjax.generators.critics import PatchCritic
from mmjax.model import Model
from mmjax.optim.optimizers import AdamW, Muon
from mmjax.optim.schedules import Constant


def emoji_paint() -> Experiment:
    """Emoji generated from their names with a conditional critic."""
    return Experiment(
        name="emoji_paint",
        data=Data(
            source=Emoji(),
            inputs={"image": ImageInput(size=32), "text": TextInput(length=24, tokenizer=Bpe(vocabulary=1024))},
        ),
        model=Model(
            width=128,
            encoders={"text": TextTransformer(depth=1)},
            fusion=SingleStream(depth=1),
            outputs={
                "image": Gan(
                    target="image",
                    widths=(16, 32, 64),
                    # With the adversarial loss alone, this few steps give the same image for every name.
                    reconstruction=5.0,
                    adversary=Adversary(critic=PatchCritic(widths=(16, 32, 64)), gradient_penalty=5.0),
                )
            },
        ),
        optimizer=Muon(learning_rate=2e-3, weight_decay=0.05, schedule=Constant(warmup=100, cooldown=0.0)),
        critic_optimizer=AdamW(learning_rate=3e-4, b1=0.0, b2=0.99, schedule=Constant(warmup=100, cooldown=0.0)),
        train=Train(steps=3000, batch_size=32, ema=0.995, evaluate_every=1000),
        checkpoint=Checkpoint(every=1000),
    )
