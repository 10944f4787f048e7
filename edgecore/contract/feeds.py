"""What goes into a tensor model, held to what the model says of its inputs: runtimes check little of it. Some compute
from memory that was never set where an input is missing, some cast or broadcast what they are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgecore.contract.errors import BadRequest
from edgecore.contract.sessions import TensorSpec


def check_feeds(inputs: Iterable[TensorSpec], feeds: Mapping[str, NDArray[Any]]) -> None:
    """Raises `BadRequest` for the first input that is missing, surplus, wrongly typed or wrongly shaped; a symbolic
    dimension takes any size, the same wherever it stands."""
    sizes: dict[str, int] = {}
    inputs = tuple(inputs)
    for spec in inputs:
        feed = feeds.get(spec.name)
        if feed is None:
            raise BadRequest(f"input {spec.name!r} is missing", supported=_named(inputs))
        if not isinstance(feed, np.ndarray):
            raise BadRequest(f"input {spec.name!r} is no array: {type(feed).__name__}", supported=_named(inputs))
        # The name alone would do, and takes numpy a microsecond.
        if feed.dtype != _dtype(spec.dtype) and feed.dtype.name != spec.dtype:
            raise BadRequest(f"input {spec.name!r} has type {feed.dtype.name}", supported=spec.dtype)
        fits = len(feed.shape) == len(spec.shape) and all(
            size == (sizes.setdefault(dim, size) if isinstance(dim, str) else dim)
            for size, dim in zip(feed.shape, spec.shape, strict=True)
        )
        if not fits:
            known = "".join(f", {name} = {size}" for name, size in sizes.items() if name in spec.shape)
            raise BadRequest(
                f"input {spec.name!r} has shape {list(feed.shape)}", supported=f"{list(spec.shape)}{known}"
            )
    if len(feeds) > len(inputs):
        surplus = next(name for name in feeds if all(spec.name != name for spec in inputs))
        raise BadRequest(f"the model has no input {surplus!r}", supported=_named(inputs))


def fixed_sizes(inputs: Iterable[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Sizes of the symbolic dimensions that `ConvertLimits.shapes` fixes. Raises `BadRequest` for a shape that an input
    cannot have, alone or beside the others."""
    by_name = {spec.name: spec for spec in inputs}
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        spec = by_name.get(name)
        if spec is None:
            raise BadRequest(f"the model has no input {name!r}", supported=_named(by_name.values()))
        fits = len(shape) == len(spec.shape) and all(
            size >= 0 and size == (sizes.setdefault(dim, size) if isinstance(dim, str) else dim)
            for size, dim in zip(shape, spec.shape, strict=True)
        )
        if not fits:
            allowed = [sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.shape]
            raise BadRequest(f"input {name!r} cannot have shape {list(shape)}", supported=f"what {allowed} allows")
    return sizes


def fixed(spec: TensorSpec, sizes: Mapping[str, int]) -> TensorSpec:
    """The spec with its symbolic dimensions at these sizes, where they have one."""
    shape = tuple(sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.shape)
    return TensorSpec(spec.name, spec.dtype, shape)


@cache
def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


def _named(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(f"{spec.name}: {spec.dtype} {list(spec.shape)}" for spec in specs)
