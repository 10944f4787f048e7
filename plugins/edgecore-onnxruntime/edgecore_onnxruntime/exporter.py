"""onnxruntime_genai's model builder, for architectures that the neutral model does not cover. It lives in an
environment of its own, because it needs torch and transformers.

It is run as people run it, by its command line: a crash in it must be an answer. What it writes has the names that
folder.py knows, and is quantized and run like any other folder.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from edgecore.checkpoint import beside
from edgecore.contract import (
    ConvertLimits,
    DoesNotFit,
    Made,
    Progress,
    UnsupportedModel,
    UnsupportedPrecision,
    Value,
    hookimpl,
    run_exporter,
)
from edgecore_onnxruntime import folder, layout

NAME = "the ONNX Runtime GenAI builder"
FORMAT = "onnx-genai"
WEIGHTS = {"f32": ("fp32", 4)}
"""Its word for a precision, and bytes a weight for the progress bar. On a CPU its float16 is refused by the runtime."""
MAIN = """
import os, runpy
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)
"""
"""Its command, which reports its use to nobody."""


@hookimpl
def edgecore_convert(
    source: Path, out: Path, format: str, precision: str, options: Mapping[str, Value], limits: ConvertLimits,
    progress: Progress,
) -> Made:  # fmt: skip
    if format != FORMAT or not (source / "config.json").is_file():
        raise UnsupportedModel(f"{source}: {NAME} takes Hugging Face folders, to {FORMAT}")
    if precision not in WEIGHTS:
        raise UnsupportedPrecision(f"{NAME} is not asked for {precision!r}", supported=", ".join(WEIGHTS))
    trained = folder.trained_context(source)
    if limits.max_context is not None and 0 < trained < limits.max_context:
        raise DoesNotFit(f"a context of {limits.max_context} tokens; the model was trained for {trained}")
    word, size = WEIGHTS[precision]
    stored = sum(file.stat().st_size for end in ("safetensors", "bin") for file in source.glob(f"*.{end}"))
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-c", MAIN, "-i", str(source), "-o", str(out), "-p", word, "-e", "cpu", "-c", cache]
        run_exporter(NAME, command, out, stored * size // 2, progress)
    if not (out / folder.MODEL).is_file() or not (out / layout.GENAI).is_file():
        raise UnsupportedModel(f"{source}: {NAME} made no {folder.MODEL} of it: it is not one language model")
    for name in (beside.CONFIG, beside.GENERATION):
        if (source / name).is_file():  # what our sessions read beside the tokenizer
            shutil.copyfile(source / name, out / name)
    return Made(
        files=tuple(folder.payload(sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()))),
        notes=(f"made by {NAME}",),
        tools={name: version(name) for name in ("onnxruntime-genai", "torch", "transformers", "onnx")},
    )
