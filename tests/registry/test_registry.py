"""What the registry says about plugins, none of which it may import."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from edgecore import paths, registry
from edgecore.contract.errors import BackendUnavailable, BadRequest
from edgecore.registry import State

from support.plugins import MANIFEST, install_plugin, write_metadata, write_plugin

EXPLODES = "raise SystemExit('plugin code was imported')"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of `sys.path`, as site-packages is one."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def entry_of(name: str) -> registry.Entry:
    return next(e for e in registry.discover().entries if e.name == name)


def test_a_plugin_is_found_with_its_manifest_and_versions_and_without_importing_it(site: Path) -> None:
    install_plugin(site, "toy", version="2.1", extra=EXPLODES)
    (site / "edgecore_toy" / "__init__.py").write_text(EXPLODES)
    entry = registry.find("toy")
    assert (entry.state, entry.distribution, entry.version) == (State.READY, "edgecore-toy", "2.1")
    assert entry.ready_manifest.devices[0].name == "cpu"
    assert entry.runtime_version == __import__("numpy").__version__
    assert entry.python == sys.executable
    assert "edgecore_toy" not in sys.modules


def test_a_missing_runtime_is_told_and_is_no_error(site: Path) -> None:
    install_plugin(
        site, "toy", manifest=manifest("toy").replace('distribution = "numpy"', 'distribution = "no-such-thing"')
    )
    assert registry.find("toy").runtime_version is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = [", "not TOML"),
        ('contract = "1.0"', "runtime: is missing"),
        (MANIFEST.replace("{contract}", "one"), "contract = 'one'"),
        (MANIFEST.replace('"{name}"', '"other"', 1).replace("{contract}", "1.0"), "is 'other', but the entry point"),
    ],
)
def test_a_bad_manifest_is_a_row_that_says_where_the_fault_is(site: Path, text: str, says: str) -> None:
    install_plugin(site, "toy")
    install_plugin(site, "bad", manifest=text)
    bad = entry_of("bad")
    assert bad.state is State.BROKEN
    assert says in bad.problem
    assert "backend.toml" in bad.problem
    assert registry.find("toy").state is State.READY
    with pytest.raises(BackendUnavailable, match="broken"):
        registry.find("bad")


def test_a_plugin_whose_package_is_gone_is_broken_until_it_is_back(site: Path) -> None:
    install_plugin(site, "toy")
    shutil.move(site / "edgecore_toy", site / "away")
    assert entry_of("toy").state is State.BROKEN
    shutil.move(site / "away", site / "edgecore_toy")
    assert entry_of("toy").state is State.READY


@pytest.mark.parametrize(("contract", "mends"), [("2.0", "edgecore"), ("0.9", "edgecore-toy")])
def test_another_contract_major_is_incompatible_and_names_the_command_that_mends_it(
    site: Path, contract: str, mends: str
) -> None:
    install_plugin(site, "toy", contract=contract)
    entry = entry_of("toy")
    assert entry.state is State.INCOMPATIBLE
    assert f"contract {contract}" in entry.problem
    assert "pip install --upgrade" in entry.hint
    assert (mends == "edgecore-toy") == ("edgecore-toy" in entry.hint)


def test_a_newer_contract_minor_is_usable_with_a_warning(site: Path) -> None:
    install_plugin(site, "toy", contract="1.7")
    entry = registry.find("toy")
    assert "contract 1.7" in entry.warning


def test_two_distributions_with_one_backend_name_are_both_refused(site: Path) -> None:
    install_plugin(site, "toy")
    write_metadata(site, "evil-toy", "1.0", {"edgecore.backends": {"toy": "edgecore_toy"}})
    entries = [e for e in registry.discover().entries if e.name == "toy"]
    assert [e.state for e in entries] == [State.DUPLICATE, State.DUPLICATE]
    with pytest.raises(BackendUnavailable, match="evil-toy"):
        registry.find("toy")


def test_the_first_of_two_copies_on_the_path_counts_as_for_imports(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_plugin(site, "toy", version="1.0")
    install_plugin(tmp_path / "before", "toy", version="2.0")
    monkeypatch.syspath_prepend(str(tmp_path / "before"))
    assert registry.find("toy").version == "2.0"


def test_the_allow_list_excludes_the_others(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_plugin(site, "toy")
    install_plugin(site, "other")
    monkeypatch.setenv("EDGECORE_ONLY", "other, third")
    assert entry_of("toy").state is State.EXCLUDED
    assert "other" in {e.name for e in registry.usable()}
    assert "toy" not in {e.name for e in registry.usable()}
    with pytest.raises(BackendUnavailable, match="EDGECORE_ONLY"):
        registry.find("toy")


def test_an_unknown_name_lists_what_is_here_and_the_nearest(site: Path) -> None:
    install_plugin(site, "toy")
    with pytest.raises(BackendUnavailable, match="did you mean 'toy'") as caught:
        registry.find("toyy")
    assert "toy" in caught.value.supported
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("layout", ["flat", "src", "package"])
def test_a_plugin_under_development_is_named_by_path(tmp_path: Path, layout: str) -> None:
    project = tmp_path / "project"
    root = project / "src" if layout == "src" else project
    write_plugin(root)
    (project / "pyproject.toml").write_text('[project]\nname = "edgecore-toy"\nversion = "0.3"\n')
    entry = registry.find(root / "edgecore_toy" if layout == "package" else project)
    assert (entry.name, entry.origin, entry.version) == ("toy", "path", "0.3")
    assert entry.search_path == (str(root),)
    assert registry.find(str(project) + os.sep) == registry.find(project)


def test_a_folder_without_a_plugin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="holds no plugin"):
        registry.find(tmp_path)


def test_commands_and_wrappers_of_other_distributions_are_listed(site: Path) -> None:
    points = {"edgecore.commands": {"extra": "extra.cli:command"}, "edgecore.wrappers": {"meter": "extra:Meter"}}
    write_metadata(site, "extra", "1.0", points)
    found = registry.discover()
    assert found.commands["extra"] == "extra.cli:command"
    assert found.wrappers["meter"] == "extra:Meter"


def write_environment(site: Path, name: str) -> None:
    """An environment's record over packages that lie in `site`, without an interpreter."""
    folder = paths.environments() / name
    folder.mkdir(parents=True)
    record = {"export": False, "python": "/elsewhere/python", "site": [str(site)]}
    (folder / "environment.json").write_text(json.dumps(record))


def test_a_plugin_of_an_environment_is_found_with_its_interpreter(tmp_path: Path) -> None:
    install_plugin(tmp_path / "away", "distant", version="4.0", extra=EXPLODES)
    assert "distant" not in {e.name for e in registry.discover().entries}
    write_environment(tmp_path / "away", "distant")
    entry = registry.find("distant")
    assert (entry.origin, entry.python, entry.version) == ("environment", "/elsewhere/python", "4.0")
    shutil.rmtree(paths.environments() / "distant")
    assert "distant" not in {e.name for e in registry.discover().entries}


def test_of_one_distribution_here_and_in_an_environment_the_environments_is_used(site: Path, tmp_path: Path) -> None:
    install_plugin(site, "toy", version="1.0")
    install_plugin(tmp_path / "away", "toy", version="2.0")
    write_environment(tmp_path / "away", "toy")
    (entry,) = [e for e in registry.discover().entries if e.name == "toy"]
    assert (entry.state, entry.origin, entry.version) == (State.READY, "environment", "2.0")
    assert entry.warning == "version 1.0 in this interpreter is not used"


# ---- the cache ----


def test_what_is_installed_upgraded_edited_and_removed_is_seen_at_once(site: Path) -> None:
    def versions() -> list[str]:
        return [e.version for e in registry.discover().entries if e.name == "toy"]

    assert versions() == []
    info = install_plugin(site, "toy", version="1.0")
    assert versions() == versions() == ["1.0"]
    info.rename(site / "edgecore_toy-1.1.dist-info")
    (site / "edgecore_toy-1.1.dist-info" / "METADATA").write_text("Name: edgecore-toy\nVersion: 1.1\n")
    assert versions() == ["1.1"]
    manifest_file = site / "edgecore_toy" / "backend.toml"
    manifest_file.write_text(manifest_file.read_text().replace("toy for tests", "another title"))
    assert registry.find("toy").ready_manifest.title == "another title"
    shutil.rmtree(site / "edgecore_toy-1.1.dist-info")
    assert versions() == []


def test_a_second_look_reads_the_cache_and_neither_parses_nor_scans(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_plugin(site, "toy")
    first = registry.discover()
    monkeypatch.setattr("edgecore.registry.scan.scan", lambda: pytest.fail("it scanned"))
    assert registry.discover() == first


@pytest.mark.parametrize("content", ["", "{", '{"schema": 1}', '{"schema": 99}', "[]"])
def test_a_damaged_cache_is_made_anew(site: Path, content: str) -> None:
    install_plugin(site, "toy")
    registry.discover()
    (file,) = paths.index().glob("plugins-*.json")
    file.write_text(content)
    assert registry.find("toy").version == "1.0"


def test_a_cache_that_cannot_be_written_is_no_error(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_plugin(site, "toy")
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGECORE_HOME", str(tmp_path / "file" / "home"))
    assert registry.find("toy").version == "1.0"


def test_fifty_plugins_are_listed_in_some_milliseconds(site: Path) -> None:
    for number in range(50):
        install_plugin(site, f"toy{number}")
    registry.discover()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        found = registry.discover()
        times.append(time.perf_counter() - start)
    assert sum(e.name.startswith("toy") for e in found.entries) == 50
    assert min(times) < 0.05  # 0.005 on an idle machine; tests share theirs


def manifest(name: str) -> str:
    return MANIFEST.format(name=name, contract="1.0", package=f"edgecore_{name}", distribution=f"edgecore-{name}")
