"""What a model is and which installed backends take it, decided from headers, before anything is converted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgecore import registry
from edgecore.checkpoint.exporters import may_take
from edgecore.contract.errors import EdgecoreError, UnsupportedModel
from edgecore.contract.progress import Progress, no_progress
from edgecore.environments import exporter_command
from edgecore.store import Store
from edgecore.verbs import verifying
from edgecore.verbs.targets import Target, locate


def inspect(given: str | Path, *, offline: bool = False, on_progress: Progress = no_progress) -> dict[str, Any]:
    """Facts about a source, a native file or an artifact, ready for JSON. Raises as `locate` does, and `CorruptModel`.

    An unsupported architecture is an answer here, under `supported`, not an error.
    """
    target = locate(given, offline=offline, on_progress=on_progress)
    if target.artifact:
        facts = _artifact(target)
    elif target.source and target.source.kind != "onnx":
        facts = _text(target)
    elif target.source:
        facts = _onnx(target.source.path)
    else:
        facts = {"kind": "native", "path": str(target.native_path)}
    said, family = str(facts.get("supported", "yes")), str(facts.get("family", ""))
    return {**facts, "backends": [] if target.artifact else _backends(target, said, family)}


def _text(target: Target) -> dict[str, Any]:
    source = target.source
    assert source is not None
    facts: dict[str, Any] = {
        "kind": source.kind,
        "path": str(source.path),
        "bytes": source.size,
        "digest": source.known_digest or "not computed yet",
    }
    facts |= {f"origin {k}": v for k, v in source.origin.items() if v}
    try:
        with verifying.opened(source.path) as checkpoint:
            decoder = checkpoint.decoder
            return facts | {
                "supported": "yes",
                "name": checkpoint.name,
                "family": decoder.family,
                "parameters": checkpoint.parameters,
                "storage": dict(checkpoint.storage),
                "layers": decoder.layers,
                "hidden_size": decoder.hidden_size,
                "heads": f"{decoder.heads} query, {decoder.kv_heads} key-value, dimension {decoder.head_dim}",
                "vocabulary": decoder.vocab_size,
                "context_length": decoder.context_length,
                "tied_embeddings": "yes" if decoder.tied else "no",
                "chat_template": "yes" if checkpoint.chat_template else "no",
            }
    except UnsupportedModel as error:
        return facts | {"supported": str(error)}


def _artifact(target: Target) -> dict[str, Any]:
    artifact = target.artifact
    assert artifact is not None
    store = Store()
    assessment = verifying.quality_of(store, artifact)
    return {
        "kind": "artifact",
        "id": artifact.id,
        "path": str(artifact.path),
        "backend": artifact.backend,
        "task": artifact.task,
        "format": artifact.format,
        "precision": artifact.precision,
        "family": artifact.family,
        "context_length": artifact.context_length,
        "bytes": store.size(artifact),
        "bits_per_weight": round(artifact.weights.bits_per_weight, 3) if artifact.weights else None,
        "requires": dict(artifact.requires),
        "quality": f"{assessment.verdict.value}: {assessment.summary()}" if assessment else "never compared",
        "chain": [
            str(step.get("verb")) + " " + str(step.get("spec") or step.get("precision")) for step in artifact.chain
        ],
    }


def _onnx(path: Path) -> dict[str, Any]:
    return {"kind": "onnx", "path": str(path), "bytes": path.stat().st_size, "supported": "yes"}


def _backends(target: Target, said: str, family: str) -> list[dict[str, str]]:
    """`said` is "yes" for a family of the neutral model, else the refusal with the exporter that takes the model. A
    backend that takes the source and does not claim its family may refuse it when it looks closer."""
    supported = said == "yes"
    rows = []
    for entry in registry.usable():
        manifest = entry.ready_manifest
        kind = target.source.kind if target.source else ""
        apart = bool(manifest.exporter and manifest.exporter.requires)
        command = exporter_command(manifest)
        try:
            native = target.native(manifest)
        except EdgecoreError:
            native = None
        if native and supported:
            how = f"as it is ({native.format})" + (", or converted" if kind in manifest.sources else "")
            rows.append({"name": entry.name, "takes": "yes", "how": how})
        elif native and not manifest.reference:
            rows.append({"name": entry.name, "takes": "perhaps", "how": f"as it is ({native.format})"})
        elif kind in manifest.sources and supported:
            claimed = not family or any(claim.family == family for claim in manifest.claims)
            how = "edgecore build" if claimed else f"edgecore build; it does not claim family {family!r}"
            rows.append({"name": entry.name, "takes": "yes" if claimed else "perhaps", "how": how})
        elif kind == "huggingface" and manifest.exporter and may_take(command, said):
            how = command if apart else f"edgecore build, through {manifest.exporter.name}"
            rows.append({"name": entry.name, "takes": "perhaps", "how": how})
        elif kind in manifest.sources:
            rows.append({"name": entry.name, "takes": "no", "how": "takes families of the neutral model"})
        else:
            rows.append({"name": entry.name, "takes": "no", "how": f"takes {', '.join(manifest.sources)}"})
    return rows
