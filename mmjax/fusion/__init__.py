"""Fusion: tokens of all modalities -> fused tokens and a summary. One file per family."""

from mmjax.fusion.attention_pool import AttentionPool
from mmjax.fusion.base import Fusion
from mmjax.fusion.bilinear import Bilinear
from mmjax.fusion.bottleneck import Bottleneck
from mmjax.fusion.concat import Concat
from mmjax.fusion.cross_attention import CrossAttention
from mmjax.fusion.experts import Experts
from mmjax.fusion.film import Film
from mmjax.fusion.gated import Gated
from mmjax.fusion.late import Late
from mmjax.fusion.low_rank_tensor import LowRankTensor
from mmjax.fusion.multiway import Multiway
from mmjax.fusion.pooled import Max, Mean, Sum, WeightedSum
from mmjax.fusion.resampler import Resampler
from mmjax.fusion.single_stream import SingleStream

TABLE: dict[str, type[Fusion]] = {
    fusion.__name__: fusion
    for fusion in (
        *(Sum, Mean, Max, WeightedSum),
        *(Concat, Gated, Film, Bilinear, LowRankTensor, AttentionPool, Late),
        *(SingleStream, CrossAttention, Bottleneck, Resampler, Multiway, Experts),
    )
}
