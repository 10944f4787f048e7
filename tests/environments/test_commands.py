"""Every printed install command comes from one function, and names what can be installed today."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from edgecore import registry
from edgecore.environments import commands, exporter_command, find_exporter, install_command, known_plugins
from edgecore.environments.commands import Origin, requirement
from edgecore.workers import connect

from support.plugins import write_plugin
from support.wheels import write_wheel


@pytest.fixture
def come_from(monkeypatch: pytest.MonkeyPatch) -> object:
    def set_origin(path: Path | None) -> None:
        monkeypatch.setattr(commands, "core_origin", lambda: Origin(path, version="1.0"))

    return set_origin


def test_from_a_clone_it_names_the_clones_folders(come_from, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    clone = tmp_path / "a clone"
    for folder in (clone, clone / "plugins" / "edgecore-llamacpp", clone / "conformance"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pyproject.toml").touch()
    come_from(clone)
    assert known_plugins() == ("llamacpp",)
    assert requirement("llamacpp") == requirement("edgecore-llamacpp") == f"{clone}/plugins/edgecore-llamacpp"
    assert requirement("conformance") == f"{clone}/conformance"
    assert requirement("edgecore[hub]") == f"{clone}[hub]"
    assert requirement("openvino") == "edgecore-openvino"
    assert requirement("someone-elses") == "someone-elses"
    words = shlex.split(install_command("llamacpp"))
    assert words[-4:] == ["-m", "pip", "install", f"{clone}/plugins/edgecore-llamacpp"]


def test_from_a_folder_of_wheels_it_names_the_wheel(come_from, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    core = write_wheel(tmp_path, "edgecore", "1.0", {})
    plugin = write_wheel(tmp_path, "edgecore-llamacpp", "1.0", {})
    come_from(core)
    assert requirement("llamacpp") == str(plugin)
    assert requirement("edgecore") == str(core)
    assert requirement("openvino") == "edgecore-openvino"


def test_from_the_index_it_names_distributions(come_from) -> None:  # type: ignore[no-untyped-def]
    come_from(None)
    assert "llamacpp" in known_plugins()
    assert requirement("llamacpp") == "edgecore-llamacpp"
    assert install_command("edgecore[hub]", upgrade=True).endswith("-m pip install --upgrade 'edgecore[hub]'")


def test_an_exporter_is_installed_in_an_environment_of_its_own() -> None:
    assert install_command("llamacpp", export=True) == "edgecore plugin install llamacpp --export"


def test_an_exporter_that_needs_nothing_more_comes_with_its_plugin(tmp_path: Path) -> None:
    folder = write_plugin(tmp_path / "plugin", "alone")
    with (folder / "edgecore_alone" / "backend.toml").open("a") as manifest:
        manifest.write('\n[exporter]\nname = "it"\nhooks = "edgecore_alone.hooks"\n')
    entry = registry.find(folder)
    assert find_exporter(entry) == ("edgecore_alone.hooks", entry.python)
    assert exporter_command(entry.ready_manifest) == "edgecore plugin install alone"
    with connect(entry, exporter=True) as exporter:
        assert exporter.has_hook("convert")
