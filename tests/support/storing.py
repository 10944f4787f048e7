"""Artifacts for tests that need *some* artifact in a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgecore.contract.artifacts import Artifact, PayloadFile
from edgecore.store import Store


def described(identity: str) -> Artifact:
    """The facts of an artifact whose one named file is `model.bin`."""
    return Artifact(Path(), "test", "text", "bin", "f16", (PayloadFile("model.bin", "model"),), id=identity)


def publish(
    store: Store, identity: str, payload: Mapping[str, bytes] | None = None, files: Sequence[PayloadFile] | None = None
) -> Artifact:
    """Builds and publishes an artifact with this payload, by default `model.bin` of seven bytes."""
    facts = described(identity)
    with store.build(identity) as staging:
        for name, data in (payload or {"model.bin": b"weights"}).items():
            path = staging.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return staging.publish(replace(facts, files=tuple(files)) if files else facts)
