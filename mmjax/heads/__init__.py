"""Fused tokens -> classes, quantities, alignments, with their losses. One file a head; new ones join the table."""

from mmjax.heads.classify import Classify
from mmjax.heads.contrast import Contrast
from mmjax.heads.regress import Regress
from mmjax.layers.output import Output

TABLE: dict[str, type[Output]] = {output.__name__: output for output in (Classify, Regress, Contrast)}
