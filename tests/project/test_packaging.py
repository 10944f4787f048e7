"""Each distribution stands on its own: it builds, passes twine's check, and brings nothing of another plugin along."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {
    tomllib.loads(path.read_text())["project"]["name"]: path.parent
    for folder in (ROOT, ROOT / "conformance", *ROOT.glob("plugins/*"))
    for path in folder.glob("pyproject.toml")
}
TOOLS = {"pip", "setuptools", "wheel"}
DATA = {
    "edgecore": "edgecore/machine/hwprofiles/x86-64-v3.toml",
    "edgecore-conformance": "edgecore_conformance/evidence/report.schema.json",
}
"""What a distribution is nothing without, a plugin's manifest apart."""


def run(*command: str | Path, **more: Any) -> str:
    """Its standard output."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Wheel and sdist of each distribution, the wheel built from the sdist: what users without a wheel would do."""
    out = tmp_path_factory.mktemp("dist")
    made = {}
    for name, folder in FOLDERS.items():
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out / name, folder)
        (wheel,) = (out / name).glob("*.whl")
        (sdist,) = (out / name).glob("*.tar.gz")
        made[name] = (wheel, sdist)
    return made


@pytest.mark.parametrize("name", FOLDERS)
def test_wheel_and_sdist_pass_twines_check(built: dict[str, tuple[Path, Path]], name: str) -> None:
    said = run(sys.executable, "-m", "twine", "check", "--strict", *built[name])
    assert said.count("PASSED") == 2


@pytest.mark.parametrize("name", FOLDERS)
def test_a_wheel_holds_its_package_the_licence_and_nothing_else(built: dict[str, tuple[Path, Path]], name: str) -> None:
    package = name.replace("-", "_")
    with zipfile.ZipFile(built[name][0]) as wheel:
        names = wheel.namelist()
    assert {path.split("/")[0] for path in names if ".dist-info/" not in path} == {package}
    assert f"{package}/py.typed" in names
    assert any(path.endswith(".dist-info/licenses/LICENSE") for path in names)
    assert not [path for path in names if "__pycache__" in path or "/tests/" in path]
    assert DATA.get(name, f"{package}/backend.toml") in names


@pytest.mark.parametrize("name", FOLDERS)
def test_an_sdist_holds_the_tests(built: dict[str, tuple[Path, Path]], name: str) -> None:
    with tarfile.open(built[name][1]) as sdist:
        assert [path for path in sdist.getnames() if re.search(r"/tests/.*test_\w+\.py$", path)]


@pytest.mark.parametrize("name", FOLDERS)
def test_metadata_names_no_place_of_this_machine(built: dict[str, tuple[Path, Path]], name: str) -> None:
    with zipfile.ZipFile(built[name][0]) as wheel:
        (path,) = [path for path in wheel.namelist() if path.endswith("METADATA")]
        metadata = wheel.read(path).decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert " @ " not in "".join(line for line in metadata.splitlines() if line.startswith("Requires-Dist"))
    assert str(ROOT) not in metadata


@pytest.mark.slow
@pytest.mark.network
def test_the_core_and_one_plugin_in_an_empty_environment_bring_nothing_of_another(
    built: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    environment = tmp_path / "empty"
    run(sys.executable, "-m", "venv", environment)
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    wheels = [built["edgecore"][0], built["edgecore-reference"][0]]
    run(*pip, "install", "-q", "-c", ROOT / "constraints.txt", *wheels)

    listed = {normal(row["name"]) for row in json.loads(run(*pip, "list", "--format=json"))}
    allowed = closure(python, "edgecore-reference")
    assert listed - TOOLS == allowed, "exactly what the two depend on"
    for name, folder in FOLDERS.items():
        if name not in ("edgecore", "edgecore-reference"):
            own = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["dependencies"]
            alien = {normal(re.split(r"[^A-Za-z0-9._-]", requirement)[0]) for requirement in own} - allowed
            assert name not in listed
            assert not alien & listed

    shutil.copytree(ROOT / "tests/support", tmp_path / "support")
    clean = {"PATH": os.environ["PATH"], "EDGECORE_HOME": str(tmp_path / "home"), "PYTHONPATH": str(tmp_path)}
    code = (
        "from pathlib import Path; from support.tiny import tiny_llama; tiny_llama(Path('tiny'));"
        "from edgecore.machine import profiles; assert profiles(), 'profiles came in the wheel';"
        "import edgecore; assert 'empty' in edgecore.__file__, edgecore.__file__"
    )
    run(python, "-c", code, cwd=tmp_path, env=clean)
    edgecore = [python, "-m", "edgecore"]
    backends = json.loads(run(*edgecore, "backends", "--json", cwd=tmp_path, env=clean))
    assert "reference" in json.dumps(backends)
    answer = run(
        *edgecore, "run", "tiny", "--backend", "reference", "-p", "The lamp", "-n", "4", "--temp", "0", "--json",
        cwd=tmp_path, env=clean,
    )  # fmt: skip
    assert json.loads(answer)["tokens"]


def closure(python: Path, root: str) -> set[str]:
    """What a distribution needs, and what that needs: computed there, by that environment's own metadata."""
    code = """
import json, re, sys
from importlib.metadata import requires
from packaging.requirements import Requirement
seen, todo = set(), [sys.argv[1]]
while todo:
    name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
    if name not in seen:
        seen.add(name)
        needs = map(Requirement, requires(name) or ())
        todo += [r.name for r in needs if not r.marker or r.marker.evaluate({"extra": ""})]
print(json.dumps(sorted(seen)))
"""
    return set(json.loads(run(python, "-c", code, root)))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
