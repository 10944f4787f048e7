"""Where the work runs, by ONNX Runtime's own account: which execution provider each operator was given to.

Recorded where the session's options ask for it (`session.record_ep_graph_assignment_info`, which runtime.py does).
"""

from __future__ import annotations

from collections import Counter

import onnxruntime as ort

from edgecore.contract import Placement, PlacementSource

QNN = "QNNExecutionProvider"
_UNITS = {
    "CPUExecutionProvider": "cpu",
    "CUDAExecutionProvider": "gpu",
    "DmlExecutionProvider": "gpu",
    "CoreMLExecutionProvider": "coreml",
}


def placement_of(session: ort.InferenceSession, device: str) -> Placement:
    """The placement of an opened model.

    device: what the session was opened on; what QNN took ran there (`npu`, or `npu-emulator`).
    """
    given = assignment(session)
    if not given:
        return Placement()
    count = Counter(_unit(provider, device) for provider, _, _ in given)
    words = ", ".join(f"{number} operators on {name}" for name, number in count.most_common())
    shares = {name: number / len(given) for name, number in count.items()}
    return Placement(PlacementSource.RUNTIME_ASSIGNMENT, shares, detail=f"ep_graph_assignment_info: {words}")


def assignment(session: ort.InferenceSession) -> list[tuple[str, str, str]]:
    """`(execution provider, operator, name)` of every node that computes, as the runtime partitioned them."""
    try:
        parts = session.get_provider_graph_assignment_info()
    except Exception:  # ONNX Runtime's own kinds derive from nothing else; it was not recorded.
        return []
    return [(part.ep_name, node.op_type, node.name) for part in parts for node in part.get_nodes()]


def left_over(session: ort.InferenceSession) -> dict[str, int]:
    """How many operators of each kind stayed with the CPU, most first."""
    return dict(Counter(kind for provider, kind, _ in assignment(session) if provider != QNN).most_common())


def _unit(provider: str, device: str) -> str:
    return device if provider == QNN else _UNITS.get(provider, provider)
