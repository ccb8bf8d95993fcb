"""mmjax: multimodal pretraining research in JAX. Data flows one way through the folders; see README.md.

`import mmjax as mm` gives every configuration class, such as mm.ViT, and `mm.load` a trained run. A module is imported
when something of it is first used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "Adafactor": "optim.optimizers",
    "AdamW": "optim.optimizers",
    "AdversarialLoss": "generators.adversary",
    "AdversarialOutput": "generators.adversary",
    "Adversary": "generators.adversary",
    "AttentionPool": "fusion.attention_pool",
    "AudioTransformer": "encoders.audio",
    "AvDigits": "data.sources.av_digits",
    "Bilinear": "fusion.bilinear",
    "Bottleneck": "fusion.bottleneck",
    "Bpe": "data.tokenize",
    "Bytes": "data.tokenize",
    "Checkpoint": "checkpoint.manager",
    "Cifar10": "data.sources.cifar10",
    "Classify": "heads.classify",
    "CodeDecoder": "generators.code_decoder",
    "Codebook": "generators.codes",
    "Concat": "fusion.concat",
    "Constant": "optim.schedules",
    "Contrast": "heads.contrast",
    "ConvNet": "encoders.convnet",
    "ConvTrunk": "layers.convnet",
    "Cosine": "optim.schedules",
    "Critic": "generators.critics",
    "CrossAttention": "fusion.cross_attention",
    "Data": "data.loader",
    "Decoding": "generators.decoding",
    "DigitStrings": "data.sources.digit_strings",
    "Emoji": "data.sources.emoji",
    "Encoder": "encoders.base",
    "Experiment": "config.experiment",
    "Experts": "fusion.experts",
    "Film": "fusion.film",
    "Fsq": "generators.codes",
    "Fusion": "fusion.base",
    "Gan": "generators.gan",
    "Gated": "fusion.gated",
    "Hinge": "generators.adversary",
    "ImageAugment": "data.augment",
    "ImageInput": "data.inputs",
    "Initialize": "checkpoint.initialize",
    "Input": "data.inputs",
    "Interactions": "data.sources.interactions",
    "LabelInput": "data.inputs",
    "Late": "fusion.late",
    "LeastSquares": "generators.adversary",
    "Linear": "optim.schedules",
    "Lion": "optim.optimizers",
    "LowRankTensor": "fusion.low_rank_tensor",
    "Max": "fusion.pooled",
    "Mean": "fusion.pooled",
    "MeshShape": "sharding.mesh",
    "Model": "model",
    "Multiway": "fusion.multiway",
    "Muon": "optim.optimizers",
    "NonSaturating": "generators.adversary",
    "Optimizer": "optim.optimizers",
    "Output": "layers.output",
    "PatchCritic": "generators.critics",
    "Perceptual": "generators.perceptual",
    "Quantizer": "generators.codes",
    "Recurrent": "encoders.recurrent",
    "Regress": "heads.regress",
    "Relativistic": "generators.adversary",
    "Rename": "checkpoint.initialize",
    "Resampler": "fusion.resampler",
    "Rsqrt": "optim.schedules",
    "Rule": "optim.optimizers",
    "Scenes": "data.sources.scenes",
    "Schedule": "optim.schedules",
    "SingleStream": "fusion.single_stream",
    "Source": "data.sources.base",
    "SpectrogramAugment": "data.augment",
    "SpectrogramInput": "data.inputs",
    "SpeechVae": "generators.speech",
    "Sum": "fusion.pooled",
    "TextDecoder": "generators.text",
    "TextInput": "data.inputs",
    "TextTransformer": "encoders.text",
    "TextVae": "generators.text_vae",
    "Tokenizer": "data.tokenize",
    "Train": "config.train",
    "Vae": "generators.vae",
    "VaeGan": "generators.vae",
    "VectorInput": "data.inputs",
    "ViT": "encoders.vit",
    "Vocoder": "generators.vocoder",
    "VqGan": "generators.vq",
    "VqVae": "generators.vq",
    "WaveformCritic": "generators.waveform_critics",
    "WaveformInput": "data.inputs",
    "WeightedSum": "fusion.pooled",
}
"""By configuration class: its module below mmjax."""

_OTHERS = {
    "Average": "types",
    "Batch": "types",
    "Fused": "types",
    "Recording": "data.sources.base",
    "Tokens": "types",
    "TrainedRun": "inference",
    "UserError": "errors",
    "load": "inference",
}
"""What else the surface has, by name: its module below mmjax."""


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name) or _OTHERS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_OTHERS})
