"""mlx_lm's own converter, for architectures that the neutral model does not cover. It lives with the plugin, which has
mlx_lm already.

It is run as people run it, by its command line: a crash in it must be an answer. Code that comes with a model is never
run, nor kept beside what was made of it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from edgecore.contract import (
    ConvertLimits,
    DoesNotFit,
    Made,
    ModelNotFound,
    Progress,
    UnsupportedModel,
    UnsupportedPrecision,
    Value,
    full_disk,
    hookimpl,
    run_exporter,
)
from edgecore_mlx import folder, weights

NAME = "mlx-lm"
FORMAT = "mlx"
TYPES = {"f32": ("float32", 4), "f16": ("float16", 2), "bf16": ("bfloat16", 2)}
"""Its word for a precision, and bytes a weight for the progress bar."""
MAIN = """
import mlx.core as mx, runpy
mx.set_default_device(mx.cpu)
runpy.run_module("mlx_lm", run_name="__main__", alter_sys=True)
"""
"""Its command. What it computes here is a change of types, for which no GPU's memory is taken."""
LEFT_OUT = ("*.py", "README.md")
"""What it copies or writes and nobody opens: code of the source's, a page for the hub."""


@hookimpl
def edgecore_convert(
    source: Path, out: Path, format: str, precision: str, options: Mapping[str, Value], limits: ConvertLimits,
    progress: Progress,
) -> Made:  # fmt: skip
    if format != FORMAT or not (source / folder.CONFIG).is_file():
        raise UnsupportedModel(f"{source}: {NAME} takes Hugging Face folders, to {FORMAT}")
    if precision not in TYPES:
        raise UnsupportedPrecision(f"{NAME} is not asked for {precision!r}", supported=", ".join(TYPES))
    trained = folder.trained_context(source)
    if limits.max_context is not None and 0 < trained < limits.max_context:
        raise DoesNotFit(f"a context of {limits.max_context} tokens; the model was trained for {trained}")
    try:
        stored = folder.tensors(source).values()
    except ModelNotFound as error:
        raise UnsupportedModel(f"{error.what}; {NAME} takes safetensors", supported=error.supported) from None
    folder.check_folder(source)
    word, size = TYPES[precision]
    made = out / "made"  # a folder that it finds it does not write to
    command = [
        sys.executable,
        "-c",
        MAIN,
        "convert",
        "--hf-path",
        str(source),
        "--mlx-path",
        str(made),
        "--dtype",
        word,
    ]
    run_exporter(NAME, command, made, sum(array.nbytes for array in stored) * size // 2, progress)
    for pattern in LEFT_OUT:
        for file in made.glob(pattern):
            file.unlink()
    for file in sorted(made.iterdir()):
        file.replace(out / file.name)
    made.rmdir()
    with full_disk(out):
        folder.copy_beside(source, out)  # the tokenizer as it was, where transformers wrote its own reading of it
    return Made(
        files=tuple(folder.payload(sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()))),
        weights=weights.measure(out),
        notes=(f"made by {NAME}",),
        tools={name: version(name) for name in ("mlx-lm", "mlx", "transformers")},
    )
