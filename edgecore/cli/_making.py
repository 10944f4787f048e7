"""convert, quantize and build differ in the verb they call; what they print is the same and stands here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgecore.cli._models import making
from edgecore.cli.output import Bars, emit_json, note, size
from edgecore.contract.artifacts import Artifact
from edgecore.contract.progress import Progress
from edgecore.verbs.making import Making


def make(verb: Callable[[str, Making, Progress], Artifact], source: str, how: Mapping[str, Any]) -> None:
    """Run a making verb, copy its result where `--out` says, and print what was made."""
    from edgecore.store import Store
    from edgecore.verbs.verifying import quality_of

    with Bars(quiet=how["as_json"]) as bars:
        artifact = verb(source, making(how), bars)
    store = Store()
    out: Path | None = how["out"]
    where = store.export(artifact, out).path if out else artifact.path
    assessment = quality_of(store, artifact)
    if how["as_json"]:
        emit_json(
            {
                "id": artifact.id,
                "path": str(where),
                "backend": artifact.backend,
                "format": artifact.format,
                "precision": artifact.precision,
                "bytes": store.size(artifact),
                "bits_per_weight": artifact.weights.bits_per_weight if artifact.weights else None,
                "fallbacks": [f.tensor for f in artifact.weights.fallbacks] if artifact.weights else [],
                "notes": list(artifact.notes),
                "quality": assessment.to_dict() if assessment else None,
            }
        )
        return
    print(artifact.id)
    bits = f", {artifact.weights.bits_per_weight:.2f} bits per weight" if artifact.weights else ""
    note(f"  {where}")
    note(f"  {artifact.format} {artifact.precision}, {size(store.size(artifact))}{bits}")
    for line in artifact.notes:
        note(f"  note: {line}")
    if artifact.weights and artifact.weights.fallbacks:
        names = [f"{f.tensor} ({f.got})" for f in artifact.weights.fallbacks]
        more = f" and {len(names) - 3} more (--json lists them)" if len(names) > 3 else ""
        note(f"  fell back to another type: {', '.join(names[:3])}{more}")
    if assessment:
        note(f"  {assessment.verdict.value}: {assessment.summary()}")
