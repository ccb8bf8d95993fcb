"""Sources of examples, by class name."""

from mmjax.data.sources.av_digits import AvDigits
from mmjax.data.sources.base import Source
from mmjax.data.sources.cifar10 import Cifar10
from mmjax.data.sources.digit_strings import DigitStrings
from mmjax.data.sources.emoji import Emoji
from mmjax.data.sources.interactions import Interactions
from mmjax.data.sources.scenes import Scenes

TABLE: dict[str, type[Source]] = {
    source.__name__: source for source in (AvDigits, Cifar10, DigitStrings, Emoji, Interactions, Scenes)
}
