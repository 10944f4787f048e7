"""What conversion and quantization lost, measured against a reference, and whether that is acceptable.

Names are imported on first use: asking for a text does not import numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecore.quality.divergence import Divergence, compare
    from edgecore.quality.report import Assessment, assess
    from edgecore.quality.stored import assess_logits
    from edgecore.quality.texts import evaluation_text, token_limit
    from edgecore.quality.verdict import Verdict

__all__ = [
    "Assessment",
    "Divergence",
    "Verdict",
    "assess",
    "assess_logits",
    "compare",
    "evaluation_text",
    "token_limit",
]
_MODULE_OF = {
    "Assessment": "report",
    "Divergence": "divergence",
    "Verdict": "verdict",
    "assess": "report",
    "assess_logits": "stored",
    "compare": "divergence",
    "evaluation_text": "texts",
    "token_limit": "texts",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
