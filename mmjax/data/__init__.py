"""Bytes to batches: sources of raw examples, inputs that make arrays of their fields, loader, placement on a mesh."""

from mmjax.data.inputs import ImageInput, Input, LabelInput, SpectrogramInput, TextInput, VectorInput, WaveformInput

TABLE: dict[str, type[Input]] = {
    cls.__name__: cls for cls in (ImageInput, TextInput, SpectrogramInput, WaveformInput, LabelInput, VectorInput)
}
