"""The README's two commands: clear about what is missing before anything starts, and no work done twice."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with its environments under tmp_path."""
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "bootstrap.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ENVS", tmp_path / "envs")
    return module


@pytest.fixture
def plugin(bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A repository with one plugin whose runtime is compiled where it is installed."""
    folder = tmp_path / "repository/plugins/edgecore-heavy/edgecore_heavy"
    folder.mkdir(parents=True)
    (folder / "backend.toml").write_text('[runtime]\ndistribution = "heavy-runtime"\nneeds = "a C++ compiler"\n')
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path / "repository")
    monkeypatch.delenv("EDGECORE_WHEELS", raising=False)
    return "heavy"


def test_an_old_python_can_read_the_script_and_gets_a_sentence(bootstrap: ModuleType) -> None:
    ast.parse((ROOT / "bootstrap.py").read_text(), feature_version=(3, 7))
    with pytest.raises(bootstrap.Stop, match=r"needs Python 3\.11 or newer; this is 3\.9"):
        bootstrap.check_python((3, 9, 18))
    bootstrap.check_python((3, 11, 0))


def test_it_uses_the_standard_library_only() -> None:
    names = {
        (node.module if isinstance(node, ast.ImportFrom) else name.name).split(".")[0]
        for node in ast.walk(ast.parse((ROOT / "bootstrap.py").read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert names <= set(sys.stdlib_module_names)


def test_a_missing_compiler_is_said_before_anything_starts(
    bootstrap: ModuleType, plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "has_compiler", lambda: False)
    with pytest.raises(bootstrap.Stop, match=r"no C\+\+ compiler was found; heavy"):
        bootstrap.check_compiler([plugin])
    assert not (tmp_path / "envs").exists()


def test_a_ready_wheel_needs_no_compiler(
    bootstrap: ModuleType, plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heavy_runtime-1.0-py3-none-any.whl").touch()
    monkeypatch.setattr(bootstrap, "has_compiler", lambda: False)
    monkeypatch.setenv("EDGECORE_WHEELS", str(tmp_path))
    bootstrap.check_compiler([plugin])


def test_every_plugin_of_the_repository_gets_an_environment_of_its_own(bootstrap: ModuleType) -> None:
    made = bootstrap.environments()
    for name in bootstrap.plugin_names():
        assert [folder.name for folder in made[name].plugins] == [f"edgecore-{name}"]
    assert [folder.name for folder in made["core"].plugins] == ["edgecore-reference"]
    assert str(ROOT / "conformance") in made["conformance"].editable
    assert not any("conformance" in folder for name in ("core", "e2e") for folder in made[name].editable)


def test_every_distribution_of_an_environment_decides_whether_it_still_stands(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("", "plugins/edgecore-toy", "suite"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "pyproject.toml").write_text("[dependency-groups]\n")
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    environment = bootstrap.Environment("x", ["toy"], [], beside=["suite"])
    for folder in ("plugins/edgecore-toy", "suite"):
        before = environment.digest
        (tmp_path / folder / "pyproject.toml").write_text("[dependency-groups]\nnew = []\n")
        assert environment.digest != before


def test_an_environment_is_made_anew_only_when_something_changed(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("pytest==9.2.0\n")
    monkeypatch.setattr(bootstrap, "CONSTRAINTS", constraints)
    environment = bootstrap.Environment("core", [], ["plugin-test"])
    environment.folder = bootstrap.ENVS / "core"
    environment.folder.mkdir(parents=True)
    environment.stamp = environment.folder / "bootstrap.stamp"
    assert not environment.stands, "an interrupted setup has no stamp"
    environment.stamp.write_text(environment.digest)
    environment.make()
    assert "stands" in capsys.readouterr().out
    constraints.write_text("pytest==9.1.0\n")
    assert not environment.stands


def test_what_is_installed_is_what_the_groups_say(bootstrap: ModuleType) -> None:
    requirements = bootstrap.environments()["core"].requirements
    assert any(r.startswith("pytest>") for r in requirements), "an included group counts"
    assert any(r.startswith("ruff") for r in requirements)
    assert not any(r.startswith("ruff") for r in bootstrap.environments()["reference"].requirements)


def test_uv_is_left_alone_where_pip_was_told_where_packages_come_from(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: "/usr/bin/uv")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.invalid/simple")
    assert bootstrap.usable_uv() is None


def test_a_failed_step_shows_the_end_of_its_log(bootstrap: ModuleType) -> None:
    bootstrap.ENVS.mkdir()
    environment = bootstrap.Environment("core", [], [])
    environment.log = bootstrap.ENVS / "core.log"
    with pytest.raises(bootstrap.Stop, match=r"installing failed \(exit 3\)(.|\n)*the reason"):
        environment._run("installing", [sys.executable, "-c", "print('the reason'); raise SystemExit(3)"])


def test_every_test_is_counted_one_by_one(bootstrap: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "test_three.py").write_text(
        "import pytest\ndef test_good(): pass\ndef test_bad(): assert 0\ndef test_not(): pytest.skip('why')\n"
    )
    tally = bootstrap.Tally()
    environment = bootstrap.Environment("core", [], [])
    environment.program = lambda name: sys.executable
    tally.pytest("tests", environment, [str(tmp_path), "-p", "no:cacheprovider"])
    assert str(tally) == "1 passed, 1 failed, 1 skipped"
    tally.check("tool", environment, ["python", "-c", "raise SystemExit(1)"])
    assert str(tally) == "1 passed, 2 failed, 1 skipped"


def test_a_test_run_that_dies_counts_as_failed(bootstrap: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "test_dies.py").write_text("import os\ndef test_dies(): os._exit(7)\n")
    tally = bootstrap.Tally()
    environment = bootstrap.Environment("core", [], [])
    environment.program = lambda name: sys.executable
    tally.pytest("tests", environment, [str(tmp_path), "-p", "no:cacheprovider"])
    assert str(tally) == "0 passed, 1 failed, 0 skipped"


def test_the_callers_marks_are_joined_with_those_of_a_part(bootstrap: ModuleType) -> None:
    given = ["tests", "-m", "not alone", "-x", "-m", "not network or slow", "-q"]
    assert bootstrap.one_mark(given) == ["tests", "-x", "-q", "-m", "(not alone) and (not network or slow)"]
    assert bootstrap.one_mark(["tests", "-k", "x"]) == ["tests", "-k", "x"]


def test_a_part_of_which_the_caller_left_nothing_has_not_failed(bootstrap: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text("def test_good(): pass\n")
    environment = bootstrap.Environment("core", [], [])
    environment.program = lambda name: sys.executable
    arguments = [str(tmp_path), "-p", "no:cacheprovider"]
    narrowed, lost = bootstrap.Tally(), bootstrap.Tally()
    narrowed.pytest("tests", environment, arguments, ["-k", "nothing"])
    assert str(narrowed) == "0 passed, 0 failed, 0 skipped"
    lost.pytest("tests", environment, [*arguments, "-k", "nothing"])
    assert str(lost) == "0 passed, 1 failed, 0 skipped"


def test_an_unknown_environment_is_an_error_that_lists_those_that_exist() -> None:
    command = [sys.executable, "bootstrap.py", "test", "--only", "nonsense"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "core, " in done.stderr
    assert "Traceback" not in done.stderr


def test_constraints_pin_exactly_and_name_no_address() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all("==" in line and "@" not in line and "/" not in line for line in lines)
    assert "edgecore" not in {line.split("==")[0] for line in lines}
