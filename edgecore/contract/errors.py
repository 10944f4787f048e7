"""One hierarchy of errors, because every failure must tell its reader three things and its caller one.

The reader learns what was wrong, what is supported instead, and the next command to type. The caller gets
an exit code. Errors travel from a worker to the caller as plain data (`to_wire`, `from_wire`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class EdgecoreError(Exception):
    """Base of every error that edgecore raises on purpose.

    what:      one sentence: what was wrong, naming the file, field or value.
    supported: what would have been accepted; empty where nothing can be named.
    hint:      the next command to type, without a prompt sign; empty where there is none.
    """

    exit_code: ClassVar[int] = 2
    """2: a bad request or bad input. Subclasses say otherwise."""

    def __init__(self, what: str, *, supported: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.supported = supported
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.what]
        if self.supported:
            parts.append(f"supported: {self.supported}")
        if self.hint:
            parts.append(f"try: {self.hint}")
        return "\n  ".join(parts)

    def to_wire(self) -> dict[str, str]:
        """The error as strings, for a worker's answer or `--json`."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "supported": self.supported,
            "hint": self.hint,
        }


class BadRequest(EdgecoreError):
    """An argument, option or file name that makes no sense, whatever the model and the machine."""


class ModelNotFound(EdgecoreError):
    """The source, native file or artifact does not exist, here or where it was looked for."""


class UnsupportedModel(EdgecoreError):
    """A valid model of an architecture, tokenizer kind, tensor type or task that is not supported."""


class UnsupportedPrecision(EdgecoreError):
    """The backend has no such precision, or has it only under a condition that was not met."""


class CorruptModel(EdgecoreError):
    """A file that is truncated, contradicts itself or fails its digest. Names the file and the field."""


class DoesNotFit(EdgecoreError):
    """More than there is: a prompt longer than the context, a model larger than the memory or the disk."""


class CannotDo(EdgecoreError):
    """The backend declares this capability absent (`logits`, say), and was asked for it."""


class BackendUnavailable(EdgecoreError):
    """The backend is not installed here, cannot be loaded, or has another contract major."""

    exit_code = 3


class DeviceUnavailable(EdgecoreError):
    """The backend is here, the device is not."""

    exit_code = 3


class PlacementRefused(EdgecoreError):
    """The work ran, or would run, on another device than the one that was asked for."""

    exit_code = 1


class QualityRefused(EdgecoreError):
    """Compared with its reference and outside the bound of its precision class."""

    exit_code = 1


class WorkerCrashed(EdgecoreError):
    """The worker process died. `what` carries the signal or exit status and its last lines on stderr."""

    exit_code = 4


class Timeout(EdgecoreError):
    """The call was not answered before its deadline; the worker was ended."""

    exit_code = 4


class Cancelled(EdgecoreError):
    """The caller asked to stop, and it stopped. 130 is what shells expect after Ctrl-C."""

    exit_code = 130


class PluginFault(EdgecoreError):
    """Plugin code raised something that is not an `EdgecoreError`: a fault of the plugin, not of the user."""

    exit_code = 4


_BY_NAME: dict[str, type[EdgecoreError]] = {
    kind.__name__: kind
    for kind in (
        EdgecoreError, BadRequest, ModelNotFound, UnsupportedModel, UnsupportedPrecision, CorruptModel, DoesNotFit,
        CannotDo, BackendUnavailable, DeviceUnavailable, PlacementRefused, QualityRefused, WorkerCrashed, Timeout,
        Cancelled, PluginFault,
    )
}  # fmt: skip


def from_wire(data: Mapping[str, Any]) -> EdgecoreError:
    """The inverse of `EdgecoreError.to_wire`; an unknown name becomes a plain `EdgecoreError`."""
    kind = _BY_NAME.get(str(data.get("error")), EdgecoreError)
    return kind(str(data.get("what", "")), supported=str(data.get("supported", "")), hint=str(data.get("hint", "")))
