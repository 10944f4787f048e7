"""Where plugin code runs: another process, perhaps another interpreter, later another machine.

    with connect(registry.find("llamacpp")) as backend:
        session = backend.open(artifact, device="cpu")

A crash, a hang or a bad import of a runtime is an error here, never the end of the caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecore.workers.backend import Backend, connect

__all__ = ["Backend", "connect"]


def __getattr__(name: str) -> Any:
    # The worker's own start imports this package, and must not pay for the caller's half.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from edgecore.workers import backend

    return getattr(backend, name)
