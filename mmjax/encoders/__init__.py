"""One modality's arrays -> tokens. One file an encoder; a new one adds its line to the table."""

from mmjax.encoders.audio import AudioTransformer
from mmjax.encoders.base import Encoder
from mmjax.encoders.convnet import ConvNet
from mmjax.encoders.recurrent import Recurrent
from mmjax.encoders.text import TextTransformer
from mmjax.encoders.vit import ViT

TABLE: dict[str, type[Encoder]] = {
    encoder.__name__: encoder for encoder in (ViT, ConvNet, TextTransformer, AudioTransformer, Recurrent)
}
