"""llama.cpp's own converter, for architectures that the neutral model does not cover. It lives in an environment of its
own, because it needs torch and transformers.

It is run as people run it, as a script: its folder is not a package, and a crash in it must be an answer.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from edgecore.contract import (
    ConvertLimits,
    Made,
    PayloadFile,
    Progress,
    UnsupportedModel,
    UnsupportedPrecision,
    Value,
    hookimpl,
    run_exporter,
)
from edgecore_llamacpp import source_package

MODEL = "model.gguf"
BITS = {"f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5}
"""Bits a weight of what the converter makes, for the progress bar."""


@hookimpl
def edgecore_convert(
    source: Path, out: Path, format: str, precision: str, options: Mapping[str, Value], limits: ConvertLimits,
    progress: Progress,
) -> Made:  # fmt: skip
    if not (source / "config.json").is_file():
        raise UnsupportedModel(f"{source}: llama.cpp's converter takes Hugging Face folders")
    if precision not in BITS:
        raise UnsupportedPrecision(f"llama.cpp's converter does not make {precision!r}", supported=", ".join(BITS))
    script = source_package.llama_cpp() / "convert_hf_to_gguf.py"
    command = [sys.executable, str(script), str(source), "--outfile", str(out / MODEL), "--outtype", precision]
    stored = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    run_exporter("llama.cpp's converter", command, out / MODEL, int(stored * BITS[precision] / 16), progress)
    return Made(
        files=(PayloadFile(MODEL, "model"),),
        notes=("made by llama.cpp's own converter",),
        tools={name: version(name) for name in ("torch", "transformers")}
        | {"llama-cpp-python": source_package.RUNTIME},
    )
