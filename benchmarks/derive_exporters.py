"""Derives edgecore/checkpoint/exporters.toml: which models each exporter of the ecosystem takes, read from its sources.

    pip download --no-deps -d wheels mlx-lm==0.32.2 onnxruntime-genai==0.18.0 optimum-intel==2.2.0
    python benchmarks/derive_exporters.py LLAMA_CPP wheels

LLAMA_CPP is llama.cpp's tree from llama-cpp-python's source package (`edgecore_llamacpp.source_package` unpacks one);
nothing of any of them is imported. Run it again when a pinned version of one changes.
"""

from __future__ import annotations

import ast
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

OUT = Path(__file__).parents[1] / "edgecore/checkpoint/exporters.toml"
LLAMA_CPP = "0.3.36"
"""The release of llama-cpp-python that the llamacpp plugin is pinned to."""


@dataclass(frozen=True)
class Exporter:
    name: str
    version: str
    install: str
    """The command that makes it usable, as it works today."""
    architectures: list[str] = field(default_factory=list)
    """Values of a config's `architectures`."""
    model_types: list[str] = field(default_factory=list)
    """Values of a config's `model_type`."""
    quantizations: list[str] = field(default_factory=list)
    """Values of `quantization_config.quant_method` whose weights it unpacks."""
    gguf_architectures: list[str] = field(default_factory=list)
    """Values of `general.architecture` that its runtime opens as they are."""


def main(llama_cpp: Path, wheels: Path) -> None:
    exporters = (from_llama_cpp(llama_cpp), *map(from_wheel, sorted(wheels.glob("*.whl"))))
    lines = ["# Which models each exporter takes. Made by benchmarks/derive_exporters.py: run it, do not edit this."]
    for exporter in exporters:
        lines += ["", "[[exporters]]"]
        for key, value in vars(exporter).items():
            if isinstance(value, str):
                lines.append(f'{key} = "{value}"')
            elif value:
                lines += [f"{key} = [", *wrapped(sorted(set(value))), "]"]
        print(exporter.name, exporter.version, {k: len(v) for k, v in vars(exporter).items() if isinstance(v, list)})
    OUT.write_text("\n".join(lines) + "\n")


def from_llama_cpp(tree: Path) -> Exporter:
    base = (tree / "conversion/base.py").read_text()
    return Exporter(
        "llama.cpp's converter",
        f"llama-cpp-python {LLAMA_CPP}",
        "edgecore plugin install llamacpp --export",
        architectures=list(assigned(tree / "conversion/__init__.py", "TEXT_MODEL_MAP")),
        quantizations=re.findall(r'if quant_method == "([\w-]+)"', base),
        gguf_architectures=[
            name
            for name in re.findall(r"\{ LLM_ARCH_\w+,\s*\"([^\"]+)\"", (tree / "src/llama-arch.cpp").read_text())
            if name not in ("clip", "(unknown)")
        ],
    )


def from_wheel(wheel: Path) -> Exporter:
    name, version = wheel.name.split("-")[:2]
    with zipfile.ZipFile(wheel) as files:
        match name:
            case "mlx_lm":
                models = [re.fullmatch(r"mlx_lm/models/(\w+)\.py", f) for f in files.namelist()]
                defining = [m[1] for m in models if m and b"class ModelArgs" in files.read(m[0])]
                remapped = re.search(
                    r"MODEL_REMAPPING = (\{.*?\n\})", files.read("mlx_lm/utils.py").decode(), re.DOTALL
                )
                assert remapped
                return Exporter(
                    "mlx-lm",
                    version,
                    "edgecore plugin install mlx",
                    model_types=[*defining, *ast.literal_eval(remapped[1])],
                )
            case "onnxruntime_genai":
                builder = files.read("onnxruntime_genai/models/builder.py").decode()
                return Exporter(
                    "the ONNX Runtime GenAI builder",
                    version,
                    "edgecore plugin install onnxruntime --export",
                    architectures=re.findall(r'config\.architectures\[0\] == "(\w+)"', builder),
                )
            case "optimum_intel":
                configs = files.read("optimum/exporters/openvino/model_configs.py").decode()
                return Exporter(
                    "optimum-intel",
                    version,
                    "edgecore plugin install openvino --export",
                    model_types=list(registered(ast.parse(configs))),
                )
    raise SystemExit(f"{wheel}: no rule for it")


def assigned(file: Path, name: str) -> Iterator[str]:
    """Keys of a dict that a module assigns to `name`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if (
            isinstance(node, ast.AnnAssign)
            and getattr(node.target, "id", "") == name
            and isinstance(node.value, ast.Dict)
        ):
            yield from (key.value for key in node.value.keys if isinstance(key, ast.Constant))


def registered(tree: ast.Module) -> Iterator[str]:
    """First arguments of optimum's registrations that name a text generation task."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "register_in_tasks_manager":
            said = [c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)]
            if "text-generation" in said and isinstance(node.args[0], ast.Constant):
                # optimum has dashes where a config has underscores.
                yield str(node.args[0].value).replace("-", "_")


def wrapped(values: list[str]) -> Iterator[str]:
    line = "   "
    for value in values:
        if len(line) + len(value) + 4 > 118:
            yield line
            line = "   "
        line += f' "{value}",'
    yield line


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
