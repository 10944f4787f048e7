"""optimum-intel's exporter, for architectures that the neutral model does not cover. It lives in an environment of its
own, because it needs torch and an older transformers.

It is run as people run it, by its command line: a crash in it must be an answer. What it writes has the names that
folder.py knows, and is quantized and run like any other folder.
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
    hookimpl,
    run_exporter,
)
from edgecore_openvino import folder, tokenizer_ir

FORMAT = "openvino-genai"
UNLIMITED = 1 << 30
"""Tokens that a text keeps where a config names no trained context and a caller of GenAI asks for truncation."""
WEIGHTS = {"f32": ("fp32", 4), "f16": ("fp16", 2)}
"""Its word for a precision, and bytes a weight for the progress bar."""
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
    command += ["--weight-format", word, "--model", str(source), str(out)]
    run_exporter("optimum-intel", command, out, stored * size // 2, progress)
    if not (out / folder.MODEL).is_file():
        raise UnsupportedModel(f"{source}: optimum-intel made no {folder.MODEL} of it: it is not one language model")
    notes = _tokenizer(out)
    return Made(
        files=tuple(folder.payload(sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()))),
        notes=("made by optimum-intel", *notes),
        tools={name: version(name) for name in ("optimum-intel", "torch", "transformers", "openvino")},
    )


def _tokenizer(out: Path) -> list[str]:
    """Ours in the place of its own wherever ours can be made: of SmolLM2's 2,506 hard lines its own gets 164 wrong."""
    try:
        stems, longest = (folder.TOKENIZER, folder.DETOKENIZER), folder.trained_context(out) or UNLIMITED
        return tokenizer_ir.write(folder.open_tokenizer(out), out, stems, longest)
    except (tokenizer_ir.NotExpressible, UnsupportedModel, ModelNotFound) as why:
        if (out / f"{folder.TOKENIZER}.xml").is_file():
            return [f"the tokenizer is optimum-intel's and was not compared with edgecore's: {why}"]
        return [f"optimum-intel made no tokenizer: {folder.NOT_FOR_GENAI}"]
