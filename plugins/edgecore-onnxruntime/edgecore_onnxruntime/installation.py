"""Which of ONNX Runtime's wheels is loaded, because they overwrite each other: the same files under several names.

`onnxruntime`, `onnxruntime-gpu`, `onnxruntime-openvino`, `onnxruntime-directml` and their like all install a package
`onnxruntime`. pip sees different distributions, installs both, and the last one's files win; removing one of them takes
the other's files away.
"""

from __future__ import annotations


def check_installation() -> None:
    """Raises `BackendUnavailable`."""
