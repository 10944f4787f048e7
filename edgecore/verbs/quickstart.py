"""The whole way once. What was measured is kept, so that asking again costs seconds and shows the same figures."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from edgecore import paths
from edgecore.contract.artifacts import Artifact
from edgecore.contract.progress import Progress, no_progress
from edgecore.contract.sampling import GREEDY
from edgecore.report import Row
from edgecore.store import Store, request_id
from edgecore.verbs import making as make
from edgecore.verbs import verifying
from edgecore.verbs.benchmarking import Load, benchmark
from edgecore.verbs.inspecting import inspect
from edgecore.verbs.making import Making
from edgecore.verbs.opening import prepare, text_session
from edgecore.verbs.remarks import remarks
from edgecore.verbs.reporting import conditions

ANSWER_TOKENS = 64


class Show(Protocol):
    """Who tells the person what happens."""

    def model(self, facts: dict[str, Any]) -> None: ...
    def remark(self, text: str) -> None: ...
    def made(self, artifact: Artifact, verdict: str) -> None: ...
    def asked(self, label: str) -> None: ...
    def said(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Quickstart:
    """Everything that the table and the report show."""

    title: str
    rows: tuple[Row, ...]
    conditions: Mapping[str, str]
    remarks: tuple[str, ...]
    from_cache: bool


def quickstart(
    source: str,
    precisions: Sequence[str],
    *,
    backend: str | None = None,
    question: str = "",
    pairs: int = 10,
    fresh: bool = False,
    offline: bool = False,
    on_progress: Progress = no_progress,
    show: Show | None = None,
) -> Quickstart:
    """Fetch, build every precision, ask each the question, measure all side by side."""
    facts = inspect(source, offline=offline, on_progress=on_progress)
    if show:
        show.model(facts)
    first = [line] if (line := lossy_source(facts, precisions)) else []
    if show:
        for line in first:
            show.remark(line)
    artifacts = []
    for precision in precisions:
        wanted = Making(backend=backend, precision=precision, offline=offline)
        artifact = make.build(source, wanted, on_progress)
        artifacts.append(artifact)
        if show:
            quality = verifying.quality_of(Store(), artifact)
            show.made(artifact, f"{quality.verdict.value}: {quality.summary()}" if quality else "")
    answers = {a.precision: _ask(a, question, on_progress, show) for a in artifacts} if question else {}
    kept = paths.index() / f"quickstart-{request_id({'ids': [a.id for a in artifacts], 'pairs': pairs})}.json"
    measured = None if fresh else _recall(kept)
    if measured is None:
        result = benchmark([a.path for a in artifacts], load=Load(pairs=pairs), on_progress=on_progress)
        measured = {
            "rows": [asdict(row) for row in result.rows()],
            "conditions": conditions(result),
            "remarks": remarks(result.comparison),
        }
        _keep(kept, measured)
        from_cache = False
    else:
        from_cache = True
        first.append(f"Speed was measured on {measured['conditions']['measured']}; --fresh measures again.")
    return Quickstart(
        title=f"{facts['name']} on this machine",
        rows=tuple(Row(**{**row, "answer": answers.get(row["label"], "")}) for row in measured["rows"]),
        conditions=measured["conditions"],
        remarks=(*first, *measured["remarks"]),
        from_cache=from_cache,
    )


def lossy_source(facts: Mapping[str, Any], precisions: Sequence[str]) -> str:
    """One plain sentence where the source itself is quantized: more bits than it has bring nothing back."""
    storage: dict[str, int] = facts["storage"]
    main = max(storage, key=lambda name: storage[name])
    if main in ("F32", "F16", "BF16"):
        return ""
    higher = next((p.upper() for p in precisions if p in ("f32", "f16", "bf16")), "half precision")
    return (
        f"The source is quantized ({main}): this {higher} is the dequantized {main}. It is its own reference here, "
        f"and what was lost before {main} was made is not known."
    )


def _ask(artifact: Artifact, question: str, progress: Progress, show: Show | None) -> str:
    """The greedy answer through the model's own chat template, shown as it comes."""
    if show:
        show.asked(artifact.precision)
    text = ""
    with text_session(prepare(artifact.path, Making(), on_progress=progress)) as session:
        tokens = session.encode_chat([{"role": "user", "content": question}])
        for piece in session.generate(tokens, max_tokens=ANSWER_TOKENS, sampling=GREEDY):
            text += piece.text
            if show:
                show.said(piece.text)
    if show:
        show.said("\n")
    return text.strip()


def _recall(file: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        [Row(**row) for row in found["rows"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def _keep(file: Path, value: Mapping[str, Any]) -> None:
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    file.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(value), encoding="utf-8")
    os.replace(partial, file)
