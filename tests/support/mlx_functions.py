"""Functions exported for the tests, and what is opened of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np

from edgecore.contract import Artifact, PayloadFile

WEIGHT = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


def native(path: Path) -> Artifact:
    return Artifact(path, "mlx", "tensor", "mlx-function", "", (PayloadFile(path.name, "model"),))


def export(path: Path, function: Callable[..., Any], *given: mx.array, shapeless: bool = False, **named: Any) -> Path:
    mx.export_function(str(path), function, *given, shapeless=shapeless, **named)
    return path


def product(path: Path, batches: Sequence[int] = (2,), *, shapeless: bool = False) -> Path:
    """`x @ WEIGHT + z` with z by keyword, traced for each batch."""
    weight = mx.array(WEIGHT)
    with mx.exporter(str(path), lambda x, z: x @ weight + z, shapeless=shapeless) as exporter:
        for batch in batches:
            exporter(mx.zeros((batch, 3)), z=mx.zeros((batch, 4)))
    return path


def feeds(batch: int = 2, **other: Any) -> dict[str, Any]:
    x = np.linspace(-1, 1, 3 * batch, dtype=np.float32).reshape(batch, 3)
    return {"input_0": x, "z": np.ones((batch, 4), np.float32), **other}


def right(fed: dict[str, Any]) -> Any:
    return fed["input_0"] @ WEIGHT + fed["z"]


def some(dtype: str, shape: tuple[int, ...] = (2, 3)) -> Any:
    """Numbers of a type, the ends of its range among them."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    values = np.arange(np.prod(shape)).reshape(shape) % 2 == 0 if dtype == "bool" else np.arange(6.0).reshape(shape)
    made = values.astype(kind)
    if kind.kind in "iu":
        made.flat[0], made.flat[1] = np.iinfo(kind).min, np.iinfo(kind).max
    if dtype == "complex64":
        made = made + 1j
    return made.astype(kind)
