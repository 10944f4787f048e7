"""The heavy half: one plain function a hook, each of which checks what it was given and hands over to one file.

    text.py     language models, over the oracle in edgecore.checkpoint
    tensors.py  tensor models, over onnx's own evaluator
    folder.py   convert: the neutral model written as a Hugging Face folder

There is no quantize and no benchmark: what a backend does not do it leaves out, and says so in backend.toml.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np

from edgecore.checkpoint import open_checkpoint
from edgecore.contract import (
    Artifact,
    ConvertLimits,
    DeviceUnavailable,
    Made,
    Probe,
    ProbedDevice,
    Progress,
    TensorSession,
    TextSession,
    UnsupportedModel,
    Value,
    hookimpl,
)


@hookimpl
def edgecore_probe() -> Probe:
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return Probe(
        devices=(ProbedDevice("cpu", available=True, description=f"numpy with {blas['name']} {blas['version']}"),),
        versions={name: version(name) for name in ("numpy", "onnx")},
    )


@hookimpl
def edgecore_convert(
    source: Path, out: Path, format: str, precision: str, options: Mapping[str, Value], limits: ConvertLimits,
    progress: Progress,
) -> Made:  # fmt: skip
    if format == "onnx":
        from edgecore_reference.tensors import seal_model

        return seal_model(source, out, precision, limits, progress)
    if format != "huggingface":
        raise UnsupportedModel(f"format {format!r} is not made by this backend", supported="huggingface, onnx")
    from edgecore_reference.folder import convert

    with open_checkpoint(source) as model:
        return convert(model, out, precision, str(options["vectors"]), limits, progress)


@hookimpl
def edgecore_run(
    artifact: Artifact, device: str, context_length: int | None, threads: int | None, options: Mapping[str, Value]
) -> TextSession | TensorSession:
    if device != "cpu":
        raise DeviceUnavailable(f"the reference has no device {device!r}", supported="cpu")
    if artifact.task == "tensor":
        from edgecore_reference.tensors import OnnxSession
        from edgecore_reference.text import limit_threads

        limit_threads(threads)
        return OnnxSession(artifact.model)
    from edgecore_reference.text import OracleSession

    return OracleSession(
        open_checkpoint(artifact.model),
        context_length=context_length,
        threads=threads,
        resident=bool(options["resident"]),
        chunk=int(options["chunk"]),
    )


@hookimpl
def edgecore_weights(artifact: Artifact) -> Mapping[str, np.ndarray] | None:
    if artifact.task != "text":
        return None
    from edgecore_reference.text import Weights

    return Weights(open_checkpoint(artifact.model))
