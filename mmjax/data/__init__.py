"""Bytes to batches: sources of raw examples, inputs that make arrays of their fields, loader, placement on a mesh."""

from mmjax.data.inputs import Input, Labels, Picture, Quantities, Sentence, Speech, Wave

TABLE: dict[str, type[Input]] = {cls.__name__: cls for cls in (Picture, Sentence, Speech, Wave, Labels, Quantities)}
