"""Fused tokens -> a modality, made anew. One file a generator; a new one adds its line to the table."""

from mmjax.generators.decoding import Decoding
from mmjax.generators.speech import SpeechVae
from mmjax.generators.text import TextDecoder
from mmjax.generators.vae import Vae
from mmjax.generators.vocoder import Vocoder
from mmjax.generators.vq import VqVae
from mmjax.layers.output import Output

TABLE: dict[str, type[Output]] = {output.__name__: output for output in (TextDecoder, SpeechVae, Vae, Vocoder, VqVae)}

__all__ = ["TABLE", "Decoding", "SpeechVae", "TextDecoder", "Vae", "Vocoder", "VqVae"]
