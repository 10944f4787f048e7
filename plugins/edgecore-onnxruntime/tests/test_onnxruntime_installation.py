"""ONNX Runtime's wheels overwrite each other: a whole one passes, a mixture is named with the command that mends it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from edgecore.contract import BackendUnavailable
from edgecore_onnxruntime import installation
from edgecore_onnxruntime.installation import check_installation, wheels

STOCK, GPU = ("onnxruntime", "1.31.1"), ("onnxruntime_gpu", "1.31.0")
CODE = ("onnxruntime/__init__.py", "onnxruntime/capi/state.so", "onnxruntime/capi/libonnxruntime.so.1")


def brought(name: str, file: str) -> bytes:
    """Each wheel's code has its own length."""
    return b"x" * (len(name) * 10 + len(file))


def record(site: Path, name: str, version: str, files: tuple[str, ...] = CODE) -> None:
    """What an installer writes down."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
    lines = [f"{file},sha256=0,{len(brought(name, file))}" for file in files]
    (info / "RECORD").write_text("\n".join([*lines, f"{info.name}/RECORD,,"]) + "\n")


def install(site: Path, name: str, version: str) -> None:
    record(site, name, version)
    for file in CODE:
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_bytes(brought(name, file))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages in which the package is looked for."""
    site = tmp_path / "site-packages"
    site.mkdir()

    class Spec:
        submodule_search_locations = (str(site / "onnxruntime"),)

    real = installation.find_spec
    monkeypatch.setattr(installation, "find_spec", lambda name: Spec if name == "onnxruntime" else real(name))
    return site


def test_this_interpreters_own_is_whole() -> None:
    check_installation()


def test_one_wheel_is_fine_whatever_it_is_called(site: Path) -> None:
    install(site, *GPU)
    check_installation()
    assert [(w.name, w.version, w.differs) for w in wheels(site)] == [("onnxruntime-gpu", "1.31.0", "")]


def test_neighbours_that_bring_other_packages_are_no_mixture(site: Path) -> None:
    install(site, *STOCK)
    for name in ("onnxruntime_genai", "onnxruntime_qnn", "onnxruntime_extensions"):
        record(site, name, "9.9", (f"{name}/__init__.py",))
    check_installation()
    assert [w.name for w in wheels(site)] == ["onnxruntime"]


def test_the_stock_wheel_over_another_is_whole_and_fine(site: Path) -> None:
    install(site, *GPU)
    install(site, *STOCK)
    check_installation()


def test_another_wheel_over_the_stock_one_is_refused(site: Path) -> None:
    """The package that is loaded is then not of the version that stands in the environment's records."""
    install(site, *STOCK)
    install(site, *GPU)
    with pytest.raises(BackendUnavailable, match=r"onnxruntime 1\.31\.1 and onnxruntime-gpu 1\.31\.0") as caught:
        check_installation()
    assert caught.value.exit_code == 3
    assert "onnxruntime/__init__.py is not what onnxruntime 1.31.1 brought" in caught.value.what
    remove, install_again = caught.value.hint.split(" && ")
    assert shlex.split(remove)[-1] == "onnxruntime-gpu"
    assert shlex.split(install_again)[-1] == "onnxruntime==1.31.1"
    assert sys.executable in remove


def test_two_of_one_version_may_lie_over_each_other(site: Path) -> None:
    install(site, *STOCK)
    install(site, "onnxruntime_gpu", STOCK[1])
    check_installation()


def test_what_another_ones_removal_took_away_is_named(site: Path) -> None:
    install(site, *STOCK)
    (site / CODE[1]).unlink()
    with pytest.raises(
        BackendUnavailable, match=r"onnxruntime 1\.31\.1 is broken: onnxruntime/capi/state\.so"
    ) as caught:
        check_installation()
    assert shlex.split(caught.value.hint)[-2:] == ["--no-deps", "onnxruntime==1.31.1"]


@pytest.mark.parametrize("file", CODE)
def test_any_file_of_code_tells(site: Path, file: str) -> None:
    install(site, *STOCK)
    (site / file).write_bytes(brought(GPU[0], file))
    with pytest.raises(BackendUnavailable, match=file):
        check_installation()


def test_of_what_no_installer_wrote_down_nothing_is_said(site: Path) -> None:
    install(site, *STOCK)
    for info in site.glob("*.dist-info"):
        (info / "RECORD").unlink()
    check_installation()


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = installation.find_spec
    monkeypatch.setattr(installation, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    with pytest.raises(BackendUnavailable, match="not installed") as caught:
        check_installation()
    assert caught.value.hint.endswith(" onnxruntime")


def test_without_pip_the_command_is_uvs(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, *STOCK)
    install(site, *GPU)
    found = installation.find_spec
    monkeypatch.setattr(installation, "find_spec", lambda name: None if name == "pip" else found(name))
    with pytest.raises(BackendUnavailable) as caught:
        check_installation()
    assert caught.value.hint.startswith(f"uv pip uninstall --python {shlex.quote(sys.executable)} onnxruntime-gpu && ")


def test_the_hooks_look_before_they_import_the_package(tmp_path: Path) -> None:
    """In a process whose first `onnxruntime` is a mixture that cannot even be imported."""
    install(tmp_path, *GPU)
    record(tmp_path, *STOCK)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import edgecore_onnxruntime.hooks"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert "BackendUnavailable: onnxruntime 1.31.1 and onnxruntime-gpu 1.31.0" in done.stderr
