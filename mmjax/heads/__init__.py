"""Heads: fused tokens -> classes, vectors or alignments. Each is one file and one table entry."""

from mmjax.heads.classify import Classify
from mmjax.heads.contrast import Contrast
from mmjax.heads.regress import Regress
from mmjax.layers.output import Output

TABLE: dict[str, type[Output]] = {output.__name__: output for output in (Classify, Regress, Contrast)}
