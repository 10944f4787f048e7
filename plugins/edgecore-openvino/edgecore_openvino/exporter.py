"""optimum-intel's exporter, for architectures that the neutral model does not cover. It lives in an environment of its
own, because it needs torch and an older transformers.

It is run as people run it, by its command line: a crash in it must be an answer. What it writes has the names that
folder.py knows, and is quantized and run like any other folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
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
    hookimpl,
)
from edgecore_openvino import folder, tokenizer_ir

FORMAT = "openvino-genai"
UNLIMITED = 1 << 30
"""Tokens that a text keeps where a config names no trained context and a caller of GenAI asks for truncation."""
WEIGHTS = {"f32": ("fp32", 4), "f16": ("fp16", 2)}
"""Its word for a precision, and bytes a weight for the progress bar."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
MAIN = """
import sys
import edgecore_openvino
sys.modules["torchvision"] = None
from optimum.commands.optimum_cli import main
main()
"""
"""Its command, behind this package, which keeps OpenVINO from reporting its use. Without torchvision, which language
models do not need: the index has it for the torch with CUDA, and beside another torch transformers fails on it."""


@hookimpl
def edgecore_convert(
    source: Path, out: Path, format: str, precision: str, options: Mapping[str, Value], limits: ConvertLimits,
    progress: Progress,
) -> Made:  # fmt: skip
    if format != FORMAT or not (source / "config.json").is_file():
        raise UnsupportedModel(f"{source}: optimum-intel takes Hugging Face folders, to {FORMAT}")
    if precision not in WEIGHTS:
        raise UnsupportedPrecision(f"optimum-intel is not asked for {precision!r}", supported=", ".join(WEIGHTS))
    trained = folder.trained_context(source)
    if limits.max_context is not None and 0 < trained < limits.max_context:
        raise DoesNotFit(f"a context of {limits.max_context} tokens; the model was trained for {trained}")
    word, size = WEIGHTS[precision]
    task = ["--task", "text-generation-with-past", "--library", "transformers"]
    command = [sys.executable, "-c", MAIN, "export", "openvino", *task]
    stored = sum(file.stat().st_size for end in ("safetensors", "bin") for file in source.glob(f"*.{end}"))
    run([*command, "--weight-format", word, "--model", str(source), str(out)], out, stored * size // 2, progress)
    if not (out / folder.MODEL).is_file():
        raise UnsupportedModel(f"{source}: optimum-intel made no {folder.MODEL} of it: it is not one language model")
    notes = _tokenizer(out)
    return Made(
        files=tuple(folder.payload(sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()))),
        notes=("made by optimum-intel", *notes),
        tools={name: version(name) for name in ("optimum-intel", "torch", "transformers", "openvino")},
    )


def run(command: list[str], out: Path, predicted: int, progress: Progress) -> None:
    """Runs the command; its growing folder is the progress, and a report that raises ends it. Raises `UnsupportedModel`
    with its last words."""
    written = 0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=said, stdin=subprocess.DEVNULL, env={**os.environ, **OFFLINE}
        )
        try:
            while True:
                try:
                    status = process.wait(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    written = max(written, min(_size(out), predicted))
                    progress(written, predicted, "exporting")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if status:
            said.seek(0)
            lines = said.read().decode("utf-8", "replace").strip().splitlines()
            raise UnsupportedModel(f"optimum-intel failed: {lines[-1] if lines else f'exit status {status}'}")
    progress(predicted, predicted, "exporting")


def _size(out: Path) -> int:
    """Bytes in the folder; files that vanish meanwhile count as nothing."""
    total = 0
    for file in out.glob("*"):
        with suppress(OSError):
            total += file.stat().st_size
    return total


def _tokenizer(out: Path) -> list[str]:
    """Ours in the place of its own wherever ours can be made: of SmolLM2's 2,506 hard lines its own gets 164 wrong."""
    try:
        stems, longest = (folder.TOKENIZER, folder.DETOKENIZER), folder.trained_context(out) or UNLIMITED
        return tokenizer_ir.write(folder.open_tokenizer(out), out, stems, longest)
    except (tokenizer_ir.NotExpressible, UnsupportedModel, ModelNotFound) as why:
        if (out / f"{folder.TOKENIZER}.xml").is_file():
            return [f"the tokenizer is optimum-intel's and was not compared with edgecore's: {why}"]
        return [f"optimum-intel made no tokenizer: {folder.NOT_FOR_GENAI}"]
