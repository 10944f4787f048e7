"""Installed from wheels, in an empty folder outside the source tree: what a tester has who has never seen this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (ROOT, ROOT / "plugins/edgecore-reference", ROOT / "conformance")


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    words = [str(part) for part in command]
    return subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, check=False, timeout=240, env={**os.environ, **env}
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three wheels, and nothing else, in a folder that comes before everything on the path."""
    made = tmp_path_factory.mktemp("installed")
    for folder in FOLDERS:
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", made / "wheels", folder]
        done = run(*build, cwd=made)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    wheels = sorted((made / "wheels").glob("*.whl"))
    assert len(wheels) == 3
    assert sum(w.stat().st_size for w in wheels) < 50e6, "with the models, under 50 MB"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", made / "site", *wheels]
    done = run(*pip, cwd=made)
    assert done.returncode == 0, done.stderr
    return made / "site"


@pytest.mark.slow
def test_the_suite_runs_and_verifies_from_an_empty_folder(site: Path, tmp_path: Path) -> None:
    # No network: whatever would be fetched goes to a port where nobody listens.
    env = {"PYTHONPATH": str(site), "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    where = run(
        sys.executable, "-c", "import edgecore, edgecore_conformance as c; print(edgecore.__file__, c.__file__)",
        cwd=tmp_path, **env,
    )  # fmt: skip
    assert where.stdout.count(str(site)) == 2, where.stdout + where.stderr
    rows = "manifest.hooks or tensor.values or (text.chat and (llama or trained))"
    command = [sys.executable, "-m", "edgecore", "conformance"]
    done = run(*command, "run", "--backend", "reference", "-k", rows, "--out", "bundle", cwd=tmp_path, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    checked = run(*command, "verify", "bundle", "--json", cwd=tmp_path, **env)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    found = json.loads(checked.stdout)
    assert found["consistent"]
    assert found["recomputed"] == found["rows"] >= 4
