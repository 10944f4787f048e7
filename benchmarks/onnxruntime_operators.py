"""The onnx package's operator cases through the ONNX Runtime plugin and through bare ONNX Runtime, side by side.

    python benchmarks/onnxruntime_operators.py                 # every case whose inputs and outputs are tensors
    python benchmarks/onnxruntime_operators.py --level quick   # the conformance suite's hundred
    python benchmarks/onnxruntime_operators.py --list          # and each case that is not right, by operator
    python benchmarks/onnxruntime_operators.py --json FILE     # and all of it in a file
    python benchmarks/onnxruntime_operators.py --device npu-emulator --level quick

*bare*: `InferenceSession(file)` on the CPU, or with the QNN execution provider and no fallback, and `run(None, feeds)`,
inputs by name. *by position*: the same, inputs given in their order. *plugin*: convert to f32, open, call. *as it is*:
the plugin opens the ONNX file itself. Each runs in a process of its own, so that a case that ends it is counted, and
the next one runs. Ends with 1 when fewer are right through the plugin than bare.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import operators
from operators import Arrays

DEVICES = ("cpu", "npu-emulator", "npu")


def bare(file: Path, feeds: Arrays, outputs: Sequence[str], by_name: bool = True) -> Arrays:
    """ONNX Runtime with nothing around it. A failure to open is none of running."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        if operators.device() != "cpu":
            with_qnn(options)
        providers = ["CPUExecutionProvider"] if operators.device() == "cpu" else None
        session = ort.InferenceSession(str(file), options, providers)
    except Exception as error:
        raise NotImplementedError(str(error)) from None
    given = feeds if by_name else dict(zip((n.name for n in session.get_inputs()), feeds.values(), strict=True))
    return dict(zip(outputs, session.run(None, dict(given)), strict=True))


def with_qnn(options: Any) -> None:
    """As Qualcomm's own page has it, and the chip that the plugin's emulator plays, without which it computes less."""
    import onnxruntime as ort
    import onnxruntime_qnn as qnn

    name = "QNNExecutionProvider"
    if not any(device.ep_name == name for device in ort.get_ep_devices()):
        ort.register_execution_provider_library(name, qnn.get_library_path())
    found = [device for device in ort.get_ep_devices() if device.ep_name == name]
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_provider_for_devices(found[:1], {"backend_path": qnn.get_qnn_htp_path(), "soc_model": "69"})


def by_position(file: Path, feeds: Arrays, outputs: Sequence[str]) -> Arrays:
    return bare(file, feeds, outputs, by_name=False)


if __name__ == "__main__":
    sys.exit(operators.main(__doc__, "onnxruntime", "onnx", {"bare": bare, "by position": by_position}, DEVICES))
