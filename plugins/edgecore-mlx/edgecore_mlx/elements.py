"""Arrays in and out of MLX. It asks numpy for native memory, makes float32 of float64 unless told, and cannot show
bfloat16 to numpy."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np
from numpy.typing import NDArray


def element(name: str) -> mx.Dtype:
    """MLX's type by numpy's or ml_dtypes' name."""
    found: mx.Dtype = getattr(mx, "bool_" if name == "bool" else name)
    return found


def laid(array: NDArray[Any]) -> NDArray[Any]:
    """The array where MLX reads it rightly, else a copy: it refuses other byte orders and negative strides."""
    flags = array.flags
    if flags.c_contiguous and flags.aligned and array.dtype.isnative:
        return array
    return np.require(array, array.dtype.newbyteorder("="), ["C", "A"])


def shown(array: mx.array) -> mx.array:
    """Bits that numpy can be shown, to be evaluated."""
    return array.view(mx.uint16) if array.dtype == mx.bfloat16 else array


def to_array(bits: mx.array, name: str) -> NDArray[Any]:
    """What an evaluated array holds, in memory of its own. `bits` is what `shown` answered."""
    made = np.array(bits, order="C")
    return made.view(ml_dtypes.bfloat16) if name == "bfloat16" else made
