"""pretrain: images, text and sound, aligned, captioned and generated, at three sizes."""

from mmjax.checkpoint.manager import Checkpoint
from mmjax.config.experiment import Experiment
from mmjax.config.train import Train
from mmjax.data.audio_inputs import SpectrogramInput
from mmjax.data.augment import SpectrogramAugment
from mmjax.data.inputs import ImageInput, TextInput
from mmjax.data.loader import Data
from mmjax.data.sources.scenes import Scenes
from mmjax.data.tokenize import Bpe
from mmjax.encoders import AudioTransformer, TextTransformer, ViT
from mmjax.fusion import CrossAttention
from mmjax.generators import CodeDecoder, TextDecoder
from mmjax.generators.codes import Codebook
from mmjax.heads import Contrast
from mmjax.model import Model
from mmjax.optim.optimizers import AdamW
from mmjax.optim.schedules import Cosine
from mmjax.sharding.mesh import MeshShape


def pretrain_300m() -> Experiment:
    """For 16 chips; on one with train.batch_size=32."""
    return sized("pretrain_300m", width=640, heads=5, depth=8, exchange=3, writing=3, batch_size=512, fsdp=-1)


def pretrain_2b() -> Experiment:
    """For 256 chips or more: a slice of v5e:16x16, or several with mesh.replica."""
    return sized("pretrain_2b", width=2048, heads=16, depth=6, exchange=2, writing=2, batch_size=5120, fsdp=64)


def pretrain_10b() -> Experiment:
    """For 1,024 chips or more: v5p:8x8x16, or four slices of v5e:16x16 with less memory per chip.

    On the latter with `mesh.replica=4 mesh.data=4 mesh.fsdp=64 model.remat=full`.
    """
    return sized("pretrain_10b", width=4096, heads=32, depth=8, exchange=3, writing=4, batch_size=16384, fsdp=256)


def sized(
    name: str, *, width: int, heads: int, depth: int, exchange: int, writing: int, batch_size: int, fsdp: int
) -> Experiment:
    """Three towers of `depth` blocks with `exchange` blocks of fusion and two decoders.

    Parameters are sharded over `fsdp` chips and replicated beyond (-1: sharded over all). The data is synthetic;
    replace it by `data.source`.
    """
    return Experiment(
        name=name,
        data=Data(
            source=Scenes(),
            inputs={
                "image": ImageInput(size=224),
                "text": TextInput(length=64, tokenizer=Bpe(vocabulary=32768)),
                "speech": SpectrogramInput(
                    rate=16000,
                    seconds=10.24,
                    hop=0.01,
                    bands=80,
                    augment=SpectrogramAugment(time_masks=2, band_masks=2),
                ),
            },
        ),
        model=Model(
            width=width,
            encoders={
                "image": ViT(patch=14, depth=depth, heads=heads),
                "text": TextTransformer(depth=depth, heads=heads),
                "speech": AudioTransformer(convolutions=2, depth=depth, heads=heads),
            },
            fusion=CrossAttention(depth=exchange, heads=heads),
            outputs={
                "image_text": Contrast(first="image", second="text", size=width, heads=heads),
                "speech_text": Contrast(first="speech", second="text", size=width, heads=heads),
                "caption": TextDecoder(target="text", depth=writing, heads=heads),
                "painting": CodeDecoder(
                    target="image",
                    quantizer=Codebook(size=4096, width=32),
                    widths=(64, 128, 256, 512),
                    depth=writing,
                    heads=heads,
                ),
            },
            modality_dropout=0.2,
            remat="dots_no_batch",
        ),
        optimizer=AdamW(learning_rate=1e-3, b2=0.95, weight_decay=0.1, schedule=Cosine(warmup=2000)),
        train=Train(steps=100_000, batch_size=batch_size, evaluate_every=5000),
        checkpoint=Checkpoint(every=1000),
        mesh=MeshShape(data=1 if fsdp == -1 else -1, fsdp=fsdp),
    )
