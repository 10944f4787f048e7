"""Packages whose names load on first use: what type checkers see is what there is."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize("package", ["edgecore.contract", "edgecore.checkpoint"])
def test_every_exported_name_is_there_and_no_other_is(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(module._MODULE_OF)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError):
        _ = module.no_such_name


@pytest.mark.parametrize(
    "module",
    [
        "edgecore",
        "edgecore.contract",
        "edgecore.contract.errors",
        "edgecore.contract.manifest",
        "edgecore.contract.options",
        "edgecore.contract.precisions",
        "edgecore.checkpoint",
        "edgecore.paths",
    ],
)
def test_light_modules_import_the_standard_library_only(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(name.split('.')[0] for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    foreign = set(done.stdout.split()) - set(sys.stdlib_module_names) - {"edgecore", "__main__"}
    assert {name for name in foreign if not name.startswith(("_", "sitecustomize"))} == set()
