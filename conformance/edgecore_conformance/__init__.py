"""The conformance suite: claims become evidence.

from edgecore_conformance import BackendConformance

class TestMine(BackendConformance):
    backend = "mine"
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecore_conformance.authors import BackendConformance

__all__ = ["BackendConformance", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "BackendConformance":
        from edgecore_conformance.authors import BackendConformance

        return BackendConformance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
