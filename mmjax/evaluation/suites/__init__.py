"""Evaluation suites, one file each: choices once their modules are imported, as those here are."""

from mmjax.evaluation.suites.attribution import Attribution
from mmjax.evaluation.suites.base import Suite
from mmjax.evaluation.suites.generation import Generation
from mmjax.evaluation.suites.probe import Probe
from mmjax.evaluation.suites.robustness import Robustness
from mmjax.evaluation.suites.slices import Slices
from mmjax.evaluation.suites.standard import Standard
from mmjax.evaluation.suites.zero_shot import ZeroShot

__all__ = ["Attribution", "Generation", "Probe", "Robustness", "Slices", "Standard", "Suite", "ZeroShot"]
