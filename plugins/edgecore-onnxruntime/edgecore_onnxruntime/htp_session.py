"""A text folder for an NPU as the contract's `TextSession`: htp_network.py computes, the rest is session.py's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgecore.contract import Artifact, DeviceUnavailable, DoesNotFit, TextSession, Value
from edgecore_onnxruntime import htp_folder
from edgecore_onnxruntime.chips import DEVICES
from edgecore_onnxruntime.htp_cache import open_kept
from edgecore_onnxruntime.htp_network import Network
from edgecore_onnxruntime.session import OnnxruntimeSession, Opened


def open_session(
    artifact: Artifact, device: str, context_length: int | None, threads: int | None, options: Mapping[str, Value]
) -> TextSession:
    """Raises `DeviceUnavailable`, `PlacementRefused`, `ModelNotFound`, `CorruptModel`, `BadRequest`, `DoesNotFit`."""
    if device not in DEVICES:
        raise DeviceUnavailable(
            f"{artifact.format} does not run on {device}: its shapes are fixed for an NPU",
            supported=", ".join(DEVICES),
            hint="edgecore convert MODEL --to onnx-genai",
        )
    folder = _folder(artifact)
    length = chosen_context(htp_folder.read(folder).context, context_length)
    network = Network(folder, lambda file: open_kept(artifact, file, threads, device, options), device)
    conditions = {
        "device": device,
        "threads": "unknown",
        "context": str(length),
        "compute": artifact.precision or network.description.precision,
        "kv_cache": network.kv_type,
    }
    return OnnxruntimeSession(Opened(network, folder, frozenset(), length, conditions))


def chosen_context(made_for: int, asked: int | None) -> int:
    """Tokens. Raises `DoesNotFit` for more than the graphs were made for."""
    if asked is not None and asked > made_for:
        raise DoesNotFit(
            f"a context of {asked} tokens; the graphs were made for {made_for}",
            supported=f"up to {made_for} tokens",
            hint=f"edgecore convert MODEL --to onnx-htp --max-context {asked}",
        )
    return asked or made_for


def _folder(artifact: Artifact) -> Path:
    file = artifact.model
    return file if file.is_dir() else file.parent
