"""The Python face: the command line's verbs as functions. Errors are `edgecore.contract.EdgecoreError`s.

`model` is what the command line takes: a source (a path, `pypi:DIST`, `hf:ORG/NAME[@REV][:QUANT|/FILE]`), a native file
or folder, an artifact's path or id, or an `Artifact`. `on_progress(done, total, stage)` is called as work goes on and
may raise `Cancelled` to stop it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecore.contract.artifacts import Artifact
from edgecore.contract.options import Value
from edgecore.contract.progress import Progress, no_progress
from edgecore.contract.sessions import TensorSession, TextSession
from edgecore.registry import Entry, discover
from edgecore.verbs import compiling, inspecting, opening
from edgecore.verbs import making as make
from edgecore.verbs.making import Making

if TYPE_CHECKING:
    from edgecore.measure import Comparison
    from edgecore.quality import Assessment

Model = str | Path | Artifact


def backends() -> tuple[Entry, ...]:
    """Every plugin that is here, usable or not, with the reason."""
    return discover().entries


def inspect(model: Model, *, offline: bool = False, on_progress: Progress = no_progress) -> dict[str, Any]:
    """What a model is and which backends take it, from its headers."""
    return inspecting.inspect(_given(model), offline=offline, on_progress=on_progress)


def build(model: Model, *, on_progress: Progress = no_progress, **how: Any) -> Artifact:
    """Convert and, where the precision is made that way, quantize; with a `profile`, compile for it ahead of time.

    Keywords are the fields of `Making`: `backend`, `precision`, `format`, `options`, `calibration`, `max_context`,
    `prefill_chunk`, `shapes`, `device`, `profile`, `allow_unverified`, `keep_refused`, `deadline` (seconds a call),
    `memory_limit` (bytes), `offline`.
    Raises `QualityRefused` for a result outside its bound.
    """
    return compiling.build(_given(model), _making(how), on_progress)


def convert(model: Model, *, on_progress: Progress = no_progress, **how: Any) -> Artifact:
    """Only the conversion; keywords as for `build`."""
    return make.convert(_given(model), _making(how), on_progress)


def quantize(model: Model, *, on_progress: Progress = no_progress, **how: Any) -> Artifact:
    """Only the quantization, of an artifact or a native file; keywords as for `build`, `precision` is needed."""
    return make.quantize(_given(model), _making(how), on_progress)


def open(
    model: Model,
    *,
    device: str | None = None,
    isolated: bool = True,
    context_length: int | None = None,
    threads: int | None = None,
    options: Mapping[str, Value] | None = None,
    on_progress: Progress = no_progress,
    **how: Any,
) -> TextSession | TensorSession:
    """Open a model on a device, building what is missing. Close the session, or use it in a `with` block.

    `isolated=False` runs the backend in this process, for callers to whom microseconds count: a crash is theirs too.
    `memory_limit` and `deadline` hold for the session as well; further keywords are those of `build`.
    """
    runnable = opening.prepare(
        _given(model), _making({**how, "options": options or {}}), device, on_progress=on_progress
    )
    return opening.open_session(
        runnable,
        isolated=isolated,
        context_length=context_length,
        threads=threads,
        memory_limit=how.get("memory_limit"),
        deadline=how.get("deadline"),
    )


def evaluate(model: Model, *, level: str = "full", on_progress: Progress = no_progress, **how: Any) -> Assessment:
    """Compare an artifact with its reference and record the evidence. `level` is `quick` or `full`."""
    from edgecore.verbs.evaluating import evaluate as verb

    return verb(_given(model), _making(how), level=level, on_progress=on_progress).assessment


def benchmark(models: Sequence[Model], *, on_progress: Progress = no_progress, **how: Any) -> Comparison:
    """Measure models against each other, interleaved; see `edgecore.verbs.benchmarking.benchmark` for the keywords."""
    from edgecore.verbs.benchmarking import benchmark as verb

    return verb([_given(m) for m in models], on_progress=on_progress, **how).comparison


def _given(model: Model) -> str:
    return str(model.path) if isinstance(model, Artifact) else str(model)


def _making(how: Mapping[str, Any]) -> Making:
    unknown = set(how) - set(Making.__slots__)
    if unknown:
        raise TypeError(f"unexpected keyword {unknown.pop()!r}; known: {', '.join(Making.__slots__)}")
    if how.get("calibration") is not None:
        how = {**how, "calibration": Path(how["calibration"])}
    return Making(**{**how, "options": how.get("options") or {}})
