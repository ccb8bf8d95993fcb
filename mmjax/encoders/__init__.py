"""Encoders: one modality's arrays -> tokens. Each is one file and one entry in the table."""

from mmjax.encoders.audio import AudioTransformer
from mmjax.encoders.base import Encoder
from mmjax.encoders.convnet import ConvNet
from mmjax.encoders.recurrent import Recurrent
from mmjax.encoders.text import TextTransformer
from mmjax.encoders.vector import FTTransformer
from mmjax.encoders.vit import ViT
from mmjax.encoders.waveform import WaveformTransformer

TABLE: dict[str, type[Encoder]] = {
    encoder.__name__: encoder
    for encoder in (ViT, ConvNet, TextTransformer, AudioTransformer, WaveformTransformer, Recurrent, FTTransformer)
}
