"""Parameters as int8 with float32 scales, a quarter of the bytes: quantization after training."""

from collections.abc import Mapping
from typing import Any

import numpy as np

# Behind the name of a parameter: the name of its scales.
SCALE = ".scale"
# Parameters with fewer entries, such as those of norms, stay as they are.
SMALLEST = 4096
LARGEST_INTEGER = 127


def quantize(parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every float32 matrix of at least `SMALLEST` entries as int8, and its scales beside it; the others as they are.

    q = round(x / s) and s = max |x| / 127, the maximum over the longest axis, or of an embedding over its last, so that
    every row has a scale of its own. Scales keep that axis with the size 1.

    Args:
        parameters: arrays by path name.
    """
    found = {}
    for name, array in parameters.items():
        if array.dtype != np.float32 or array.ndim < 2 or array.size < SMALLEST:
            found[name] = array
            continue
        axis = -1 if name.endswith("embedding") else int(np.argmax(array.shape))
        scale = np.abs(array).max(axis, keepdims=True) / np.float32(LARGEST_INTEGER)
        scale[scale == 0] = 1
        found[name] = np.rint(array / scale).astype(np.int8)
        found[name + SCALE] = scale
    return found


def dequantize(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that `quantize` rounded, as float32, by NumPy or in a function that JAX traces."""
    names = [name for name in parameters if not name.endswith(SCALE)]
    return {name: dequantize_one(parameters[name], parameters.get(name + SCALE)) for name in names}


def dequantize_one(array: Any, scale: Any | None) -> Any:
    """A parameter, or a part of it with that part of its scales."""
    return array if scale is None else array.astype(np.float32) * scale
