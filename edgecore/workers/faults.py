"""Whatever plugin code raises becomes one of our errors here, so that a caller never meets a foreign one."""

from __future__ import annotations

import os
import traceback

import pluggy

from edgecore.contract import errors
from edgecore.contract.disk import DISK_FULL
from edgecore.contract.errors import DoesNotFit, EdgecoreError, PluginFault

_SHOWN_FRAMES = 3
_MACHINERY = (os.path.dirname(pluggy.__file__), os.path.dirname(__file__))
"""Frames of these folders tell an author nothing."""


def as_error(error: BaseException, backend: str, doing: str) -> EdgecoreError:
    """`error` as an `EdgecoreError`: itself where it is one, `DoesNotFit` for a full disk or memory, else
    `PluginFault`."""
    if isinstance(error, EdgecoreError):
        return error
    if isinstance(error, MemoryError):
        return DoesNotFit(f"{doing} with {backend!r} ran out of memory: {error}")
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        where = f" while writing {error.filename}" if error.filename else ""
        return DoesNotFit(f"the disk is full, or a file grew beyond its limit{where}: {error.strerror}")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_MACHINERY)]
    trail = "".join(f"\n    at {f.filename}:{f.lineno} in {f.name}: {f.line}" for f in frames[-_SHOWN_FRAMES:])
    name, text = type(error).__name__, str(error)
    return PluginFault(f"backend {backend!r} failed in {doing}: {name}{': ' if text else ''}{text}{trail}")


def to_wire(error: EdgecoreError) -> dict[str, str]:
    """As `EdgecoreError.to_wire`, under the nearest name that the other side knows: plugins may derive their own."""
    known = next(k for k in type(error).__mro__ if getattr(errors, k.__name__, None) is k)
    return {**error.to_wire(), "error": known.__name__}
