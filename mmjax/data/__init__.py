"""Data: sources of raw examples, inputs that turn fields into arrays, loading, and device placement."""

from mmjax.data.audio_inputs import SpectrogramInput, WaveformInput
from mmjax.data.filters import Filtered
from mmjax.data.formats import FORMATS
from mmjax.data.inputs import ImageInput, Input, LabelInput, TextInput, VectorInput
from mmjax.data.mixture import Mixture
from mmjax.data.patches_input import PatchesInput
from mmjax.data.whisper_input import WhisperInput

__all__ = ["FORMATS", "TABLE", "Filtered", "Mixture"]

TABLE: dict[str, type[Input]] = {
    cls.__name__: cls
    for cls in (
        *(ImageInput, PatchesInput, TextInput, SpectrogramInput, WhisperInput, WaveformInput),
        *(LabelInput, VectorInput),
    )
}
