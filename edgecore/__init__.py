"""One model, many kinds of hardware, and evidence for each.

    artifact = edgecore.build(source, backend="llamacpp", precision="q4_k_m")
    session = edgecore.open(artifact, device="cpu")

The same words as on the command line; what is not listed here is private. Names are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edgecore.api import backends as backends
    from edgecore.api import benchmark as benchmark
    from edgecore.api import build as build
    from edgecore.api import convert as convert
    from edgecore.api import evaluate as evaluate
    from edgecore.api import inspect as inspect
    from edgecore.api import open as open
    from edgecore.api import quantize as quantize

__all__ = ["backends", "benchmark", "build", "convert", "evaluate", "inspect", "open", "quantize"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("edgecore.api"), name)
