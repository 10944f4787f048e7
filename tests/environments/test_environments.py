"""Plugins whose dependencies conflict, each in an environment of its own, used through one core."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgecore import environments, paths, registry
from edgecore.contract.errors import BackendUnavailable, BadRequest
from edgecore.contract.sessions import TextSession
from edgecore.environments import Environment
from edgecore.registry import State
from edgecore.workers import connect

from support.plugins import MANIFEST, TOY, toy_artifact
from support.wheels import write_wheel

pytestmark = pytest.mark.network

HOOKS = """
import tinydep

@hookimpl
def edgecore_probe():
    return Probe((ProbedDevice("cpu", True),), {"tinydep": tinydep.VERSION, "python": sys.executable})
"""
EXPORTER = """
import tinydep
from edgecore.contract import Made, PayloadFile, hookimpl

@hookimpl
def edgecore_convert(source, out):
    (out / "exported").write_text(tinydep.VERSION)
    return Made((PayloadFile("exported", "model"),))
"""


def plugin_wheel(folder: Path, name: str, needs: str, exporter_needs: str = "") -> Path:
    package = f"edgecore_{name}"
    manifest = MANIFEST.format(name=name, contract="1.0", package=package, distribution=f"edgecore-{name}")
    if exporter_needs:
        table = f'[exporter]\nname = "tiny exporter"\nhooks = "{package}.exporter"\nrequires = ["{exporter_needs}"]\n'
        manifest = manifest.replace("[runtime]", table + "\n[runtime]")
    files = {
        f"{package}/__init__.py": "",
        f"{package}/backend.toml": manifest,
        f"{package}/hooks.py": TOY + HOOKS,
        f"{package}/exporter.py": EXPORTER,
    }
    points = f"[edgecore.backends]\n{name} = {package}\n"
    return write_wheel(folder, f"edgecore-{name}", "1.0", files, requires=["edgecore", needs], entry_points=points)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    for version in ("1.0", "2.0"):
        write_wheel(folder, "tinydep", version, {"tinydep.py": f"VERSION = '{version}'\n"})
    plugin_wheel(folder, "left", "tinydep==1.0", exporter_needs="tinydep==2.0")
    plugin_wheel(folder, "right", "tinydep==2.0")
    return folder


@pytest.fixture
def index(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's index, and beside it our wheels."""
    monkeypatch.setenv("PIP_FIND_LINKS", f"{os.environ.get('PIP_FIND_LINKS', '')} {wheels}".strip())
    return wheels


@pytest.fixture(scope="module")
def installed(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Environment, Environment]:
    """Both plugins, in a home for this module: making environments takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGECORE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("PIP_FIND_LINKS", f"{os.environ.get('PIP_FIND_LINKS', '')} {wheels}".strip())
        left = environments.install("edgecore-left")
        right = environments.install(wheels / "edgecore_right-1.0-py3-none-any.whl")
    return left, right


@pytest.fixture
def home(installed: tuple[Environment, Environment], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECORE_HOME", str(installed[0].path.parents[1]))


@pytest.mark.usefixtures("home")
def test_two_plugins_whose_dependencies_conflict_are_used_through_one_core(tmp_path: Path) -> None:
    with connect(registry.find("left")) as left, connect(registry.find("right")) as right:
        versions = [backend.probe().versions for backend in (left, right)]
        assert [v["tinydep"] for v in versions] == ["1.0", "2.0"]
        assert len({v["python"] for v in versions} | {sys.executable}) == 3
        for backend in (left, right):
            session = backend.open(toy_artifact(tmp_path / "a"), device="cpu")
            assert isinstance(session, TextSession)
            assert "".join(p.text for p in session.generate([ord("a")], max_tokens=3)) == "bcd"
    assert "tinydep" not in sys.modules


@pytest.mark.usefixtures("home")
def test_a_manifest_is_read_from_an_environment_without_starting_it(installed: tuple[Environment, Environment]) -> None:
    entry = registry.find("left")
    assert (entry.origin, entry.python, entry.version) == ("environment", installed[0].python, "1.0")
    assert entry.ready_manifest.title == "left for tests"
    assert entry.runtime_version
    assert entry.location.startswith(str(installed[0].path))


@pytest.mark.usefixtures("home")
def test_the_record_pins_what_was_installed(installed: tuple[Environment, Environment]) -> None:
    left, right = installed
    assert environments.list_environments() == (left, right)
    assert "tinydep==1.0" in left.packages
    assert "tinydep==2.0" in right.packages
    assert any(p.startswith("numpy==") for p in left.packages)
    assert left.requirement == "edgecore-left"
    assert left.to_dict()["path"] == str(left.path)


@pytest.mark.usefixtures("home")
def test_an_environment_does_not_see_the_callers_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tinydep.py").write_text("VERSION = 'the caller has another'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with connect(registry.find("left")) as left:
        assert left.probe().versions["tinydep"] == "1.0"
    with pytest.raises(BackendUnavailable, match="environment of its own"):
        connect(registry.find("left"), isolated=False)


@pytest.mark.usefixtures("home", "index")
def test_an_exporter_has_another_environment_than_its_plugin(tmp_path: Path) -> None:
    entry = registry.find("left")
    with pytest.raises(BackendUnavailable, match="exporter") as caught:
        connect(entry, exporter=True)
    assert caught.value.hint == "edgecore plugin install left --export"
    with pytest.raises(BadRequest, match="names no exporter"):
        connect(registry.find("right"), exporter=True)
    made = environments.install("edgecore-left", export=True)
    assert (made.name, made.backend, made.export) == ("left-export", "left", True)
    with connect(entry, exporter=True) as exporter:
        exporter.convert(source=tmp_path, out=tmp_path, format="toy", precision="f16")
    assert (tmp_path / "exported").read_text() == "2.0"
    assert [e.name for e in registry.usable() if e.name.startswith("left")] == ["left"]
    environments.remove("left-export")
    assert not made.path.exists()
    assert [e.name for e in environments.list_environments()] == ["left", "right"]


@pytest.mark.usefixtures("index")
def test_a_new_installation_replaces_the_old_and_remove_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    first = environments.install("edgecore-right")
    monkeypatch.setattr("edgecore.environments.installer._find_uv", lambda: None)  # venv and pip
    lines: list[str] = []
    second = environments.install("edgecore-right", on_line=lines.append)
    assert any("tinydep-2.0" in line for line in lines)
    assert environments.list_environments() == (second,)
    assert not first.path.exists()
    environments.remove("right")
    assert environments.list_environments() == ()
    assert list(paths.environments().iterdir()) == []
    with pytest.raises(BadRequest, match="no environment 'right'"):
        environments.remove("right")


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("edgecore-no-such-thing-xyzzy", BackendUnavailable, "edgecore-no-such-thing-xyzzy"),
        ("./nowhere", BadRequest, "does not exist"),
        (".", BadRequest, "holds no plugin"),
    ],
)
def test_a_failed_installation_says_why_and_leaves_nothing(
    name: str, error: type[Exception], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=says):
        environments.install(name)
    assert environments.list_environments() == ()
    assert not paths.environments().exists() or list(paths.environments().iterdir()) == []


def test_what_is_no_plugin_is_refused_after_installing_it(wheels: Path) -> None:
    with pytest.raises(BackendUnavailable, match="provides no backend"):
        environments.install(wheels / "tinydep-1.0-py3-none-any.whl")
    assert environments.list_environments() == ()
    assert list(paths.environments().iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="needs kill -9, which Windows lacks")
def test_a_killed_installation_lists_nothing_and_the_next_one_sweeps_it(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from edgecore import environments as e;"
        "e.install(sys.argv[1], on_line=lambda line: os.kill(os.getpid(), signal.SIGKILL))"
    )
    wheel = plugin_wheel(tmp_path / "w", "killed", "edgecore")
    done = subprocess.run([sys.executable, "-c", code, str(wheel)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert environments.list_environments() == ()
    assert "killed" not in {e.name for e in registry.discover().entries}
    with pytest.raises(BackendUnavailable):
        environments.install("edgecore-no-such-thing-xyzzy")
    assert list(paths.environments().iterdir()) == []


def test_a_damaged_record_is_as_good_as_none() -> None:
    folder = paths.environments() / "damaged"
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text('{"schema": 1')
    assert environments.list_environments() == ()
    assert all(e.state is not State.BROKEN or e.origin != "environment" for e in registry.discover().entries)
