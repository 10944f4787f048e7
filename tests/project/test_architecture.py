"""The arrows of the design, checked on the sources: who may import whom, at a file's top or deep inside a function."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOUNDATION = {"contract", "paths", "disk"}
MAY_IMPORT = {
    "contract": set(),
    "paths": {"contract"},
    "disk": {"contract"},
    "checkpoint": {"contract"},
    "registry": FOUNDATION,
    "environments": FOUNDATION | {"registry", "sources"},
    "machine": FOUNDATION,
    "sources": FOUNDATION | {"checkpoint"},
    "store": FOUNDATION | {"checkpoint", "sources"},
    "quality": FOUNDATION | {"checkpoint"},
    "workers": FOUNDATION | {"registry", "environments"},
    "measure": FOUNDATION | {"checkpoint", "machine", "registry", "workers"},
    "report": FOUNDATION,
}
"""A part to the parts below it. What stands above (verbs, api, cli) may import all of these."""
MAY_IMPORT["verbs"] = set(MAY_IMPORT)
MAY_IMPORT["api"] = set(MAY_IMPORT)
MAY_IMPORT["cli"] = set(MAY_IMPORT) | {"api"}
ONE_BY_ONE = {
    "workers": {"edgecore.measure.loop", "edgecore.measure.loop.run_workload"},
    "registry": {
        "edgecore.environments",
        "edgecore.environments.install_command",
        "edgecore.environments.known_plugins",
    },
}
"""Against the arrow, on purpose: the contract's own measuring loop runs inside a worker, beside the plugin; and every
message with an install command gets it from the one function that makes them."""
RUNTIMES = {
    "coremltools", "llama_cpp", "mlx", "onnx", "onnxruntime", "openvino", "tensorflow", "torch", "transformers",
}  # fmt: skip
TOO_SLOW = {"rich", "tabulate", "pkg_resources", "execnet"}
"""Left out for start-up time, or because they are in maintenance only."""


def imports(path: Path, base: Path) -> Iterator[str]:
    """Every module that a file names in an import, submodules spelled out; relative ones made absolute."""
    package = list(path.relative_to(base).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{name.name}" for name in node.names)


def sources(package: Path) -> list[Path]:
    return sorted(path for path in package.rglob("*.py") if "__pycache__" not in path.parts)


CORE = sources(ROOT / "edgecore")
PLUGINS = sorted(ROOT.glob("plugins/edgecore-*/edgecore_*"))
SUITE = ROOT / "conformance/edgecore_conformance"
DISTRIBUTIONS = {package.parent: package for package in (ROOT / "edgecore", SUITE, *PLUGINS)}
EVERY_FILE = [path for package in DISTRIBUTIONS.values() for path in sources(package)]


def part(path: Path) -> str:
    return path.relative_to(ROOT / "edgecore").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_imports_downwards_only(path: Path) -> None:
    here = part(path)
    if here in ("__init__", "__main__"):
        return
    allowed = MAY_IMPORT[here] | {here}
    for name in imports(path, ROOT):
        top, _, rest = name.partition(".")
        assert top not in RUNTIMES, f"{name}: the core knows no runtime"
        assert top not in TOO_SLOW, name
        assert not top.startswith("edgecore_"), f"{name}: the core knows no plugin"
        below = rest.split(".")[0]
        if top == "edgecore" and below in MAY_IMPORT:
            one_by_one = name in ONE_BY_ONE.get(here, ())
            assert below in allowed or one_by_one, f"{here} imports {name}; it may import {sorted(allowed)}"


def test_every_part_of_the_core_has_its_place() -> None:
    assert {part(path) for path in CORE} - {"__init__", "__main__"} <= set(MAY_IMPORT)


@pytest.mark.parametrize("package", PLUGINS, ids=lambda p: p.name)
def test_a_plugin_imports_the_contract_and_the_neutral_model_only(package: Path) -> None:
    for path in sources(package):
        for name in imports(path, package.parent):
            top, _, rest = name.partition(".")
            if top == "edgecore" and rest:
                assert rest.split(".")[0] in ("contract", "checkpoint"), f"{path.name} imports {name}"
            assert top == package.name or not top.startswith("edgecore_"), f"{path.name} imports {name}"


def test_the_conformance_suite_imports_no_plugin_and_no_runtime_but_onnx() -> None:
    """It knows backends by what they claim; onnx makes its operator cases."""
    for path in sources(SUITE):
        for name in imports(path, SUITE.parent):
            top = name.split(".")[0]
            assert top not in RUNTIMES - {"onnx"}, f"{path.name} imports {name}"
            assert top == SUITE.name or not top.startswith("edgecore_"), f"{path.name} imports {name}"


@pytest.mark.parametrize("folder", DISTRIBUTIONS, ids=lambda p: p.name)
def test_what_a_distribution_imports_it_also_declares(folder: Path) -> None:
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    optional = [r for extra in project.get("optional-dependencies", {}).values() for r in extra]
    declared = {normal(re.split(r"[^A-Za-z0-9._-]", r)[0]) for r in [*project["dependencies"], *optional]}
    provides = packages_distributions()
    for path in sources(DISTRIBUTIONS[folder]):
        for name in imports(path, DISTRIBUTIONS[folder].parent):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top == DISTRIBUTIONS[folder].name or top in BROUGHT_ALONG:
                continue
            # A runtime need not be installed here: then a declared distribution must at least bear its name.
            like = [name for name in declared if name.startswith(normal(top))]
            owners = {normal(owner) for owner in provides.get(top, like)}
            assert owners & declared, f"{path.name} imports {top}, of {sorted(owners)}, undeclared"


BROUGHT_ALONG = {"google"}
"""protobuf's exceptions, which onnx raises: whoever has onnx has them."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("folder", DISTRIBUTIONS, ids=lambda p: p.name)
def test_no_default_install_brings_torch_or_transformers(folder: Path) -> None:
    dependencies = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[^A-Za-z0-9._-]", requirement)[0] for requirement in dependencies}
    assert not names & {"torch", "transformers", "tensorflow"}


@pytest.mark.parametrize("path", EVERY_FILE, ids=lambda p: p.name)
def test_a_file_says_why_it_exists_and_stays_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 450, "a file has one reason; this one has grown more"
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "the first lines say why the file exists"
