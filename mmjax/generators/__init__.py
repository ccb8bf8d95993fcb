"""Generators: fused tokens -> a modality. Each is one file and one entry in the table."""

from mmjax.generators.code_decoder import CodeDecoder
from mmjax.generators.decoding import Decoding
from mmjax.generators.gan import Gan
from mmjax.generators.speech import SpeechVae
from mmjax.generators.text import TextDecoder
from mmjax.generators.text_vae import TextVae
from mmjax.generators.vae import Vae, VaeGan
from mmjax.generators.vocoder import Vocoder
from mmjax.generators.vq import VqGan, VqVae
from mmjax.layers.output import Output

TABLE: dict[str, type[Output]] = {
    output.__name__: output
    for output in (TextDecoder, TextVae, Vae, VaeGan, VqVae, VqGan, CodeDecoder, Gan, SpeechVae, Vocoder)
}

__all__ = [
    "TABLE",
    "CodeDecoder",
    "Decoding",
    "Gan",
    "SpeechVae",
    "TextDecoder",
    "TextVae",
    "Vae",
    "VaeGan",
    "Vocoder",
    "VqGan",
    "VqVae",
]
