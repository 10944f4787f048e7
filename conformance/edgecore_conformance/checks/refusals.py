"""What convert and quantize are asked for in vain, and the errors that are due."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgecore.contract.artifacts import Made
from edgecore.contract.hookspecs import ConvertLimits
from edgecore.workers import Backend
from edgecore_conformance.bench import Bench
from edgecore_conformance.checks.jobs import Job
from edgecore_conformance.known import TRAINED

REFUSALS = {
    "precision": ("UnsupportedPrecision",),
    "format": ("UnsupportedModel", "BadRequest"),
    "family": ("UnsupportedModel",),
    "context": ("DoesNotFit",),
    "missing": ("ModelNotFound",),
}
"""Errors that are due, by case."""
NO_PRECISION = "q7_nobody"


def refusal(bench: Bench, case: str, out: Path, job: Job | None = None) -> Made:
    """Ask convert (or the job's verb) for what there is not. Raises what the backend raises."""
    backend: Backend = bench.backend()
    if job is not None and job.base is not None:
        return backend.quantize(
            artifact=job.base, out=out, precision=NO_PRECISION, options=bench.options("quantize", job.base.task),
            deadline=bench.left,
        )  # fmt: skip
    task = "tensor" if job is not None and job.source.suffix == ".onnx" else "text"
    precision = next(p.name for p in bench.manifest.precisions_of(task) if p.by != "quantize")
    model = job.source if job is not None else bench.known.fixture(TRAINED)
    given: dict[str, Any] = {
        "source": model,
        "format": bench.format_for(precision, task),
        "precision": precision,
        "limits": bench.limits(task, model),
    }
    if case == "precision":
        given["precision"] = NO_PRECISION
    elif case == "format":
        given["format"] = "format-of-nobody"
    elif case == "family":
        from edgecore_conformance.checks.sources import source

        folder = source(bench, "huggingface")
        config = (folder / "config.json").read_text(encoding="utf-8")
        (folder / "config.json").write_text(config.replace('"llama"', '"family_of_nobody"'), encoding="utf-8")
        given["source"] = folder
    elif case == "context":
        given["limits"] = ConvertLimits(max_context=1 << 24)
    elif case == "missing":
        given["source"] = bench.folder("nothing") / "no-model"
    return backend.convert(out=out, options=bench.options("convert", task), deadline=bench.left, **given)
