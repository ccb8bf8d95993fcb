"""Tokens of all modalities -> fused tokens and a summary. One file a family; a new one adds its line to the table."""

from mmjax.fusion.base import Fusion
from mmjax.fusion.concat import Concat
from mmjax.fusion.cross_attention import CrossAttention

TABLE: dict[str, type[Fusion]] = {fusion.__name__: fusion for fusion in (Concat, CrossAttention)}
