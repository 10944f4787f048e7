"""Installed from wheels, in an empty folder outside the source tree: what people have who have never seen this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (ROOT, ROOT / "plugins/edgecore-reference", ROOT / "conformance")
ROWS = "manifest.hooks or tensor.values or (text.chat and (llama or trained))"
AUTHORS = """
from edgecore_conformance import BackendConformance


class TestMine(BackendConformance):
    backend = "reference"
"""
pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    words = [str(part) for part in command]
    return subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, check=False, timeout=240, env={**os.environ, **env}
    )


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs of an environment lie that has the three wheels. What they depend on is borrowed from this
    environment's folders of packages; an edgecore in the source tree is not in these."""
    made = tmp_path_factory.mktemp("installed")
    for folder in FOLDERS:
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", made / "wheels", folder]
        done = run(*build, cwd=made)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    wheels = sorted((made / "wheels").glob("*.whl"))
    assert len(wheels) == 3
    assert sum(w.stat().st_size for w in wheels) < 50e6, "with the models, under 50 MB"
    done = run(sys.executable, "-m", "venv", made / "environment", cwd=made)
    assert done.returncode == 0, done.stderr
    found = made / "environment" / ("Scripts" if os.name == "nt" else "bin")
    done = run(found / "python", "-m", "pip", "install", "--no-deps", "--no-index", *wheels, cwd=made)
    assert done.returncode == 0, done.stderr
    modules = "edgecore, edgecore_conformance, edgecore_reference"
    code = f"import {modules}; print(*(module.__file__ for module in ({modules})))"
    done = run(found / "python", "-c", code, cwd=made)
    assert done.stdout.count(str(made / "environment")) == 3, done.stdout + done.stderr
    site = Path(done.stdout.split()[0]).parents[1]
    borrowed = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    return found


def test_a_tester_runs_and_verifies_from_an_empty_folder(programs: Path, tmp_path: Path) -> None:
    # No network: whatever would be fetched goes to a port where nobody listens.
    env = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    command = [programs / "edgecore", "conformance"]
    done = run(*command, "run", "--backend", "reference", "-k", ROWS, "--out", "bundle", cwd=tmp_path, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    found = verified(programs, tmp_path)
    assert found["recomputed"] == found["rows"] >= 4


def test_an_author_runs_one_class_under_plain_pytest(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(AUTHORS)
    done = run(programs / "python", "-m", "pytest", "-k", ROWS, "--conformance-out", "bundle", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = verified(programs, tmp_path)
    assert found["recomputed"] == found["rows"] >= 4
    assert f"{found['rows']} passed" in done.stdout


def verified(programs: Path, folder: Path) -> dict[str, int]:
    done = run(programs / "edgecore", "conformance", "verify", "bundle", "--json", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, int] = json.loads(done.stdout)
    assert told["consistent"]
    return told
