"""What the sources share with the TFDS builders of their files: versions and the names of classes."""

import re

AV_DIGITS_VERSION = CIFAR10_VERSION = EMOJI_VERSION = SCENES_VERSION = "1.0.0"

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

EMOJI_GROUPS = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)
SKIN_TONE = re.compile(r"(?:medium-)?(?:light|dark) skin tone|medium skin tone")
