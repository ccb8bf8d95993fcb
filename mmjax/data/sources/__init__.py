"""Sources of examples, by class name."""

from mmjax.data.sources.av_digits import AvDigits
from mmjax.data.sources.base import Source
from mmjax.data.sources.interactions import Interactions
from mmjax.data.sources.scenes import Scenes

TABLE: dict[str, type[Source]] = {"AvDigits": AvDigits, "Interactions": Interactions, "Scenes": Scenes}
