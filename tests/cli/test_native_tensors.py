"""A native tensor file: said to be what it is, run on the device that the last probe found, measured by the contract's
loop where the backend's own is for text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgecore.verbs import probing

from support.cli import edgecore
from support.plugins import MANIFEST, install_plugin

GPU_FIRST = MANIFEST.format(name="toy", contract="1.0", package="edgecore_toy", distribution="edgecore-toy").replace(
    '[[devices]]\nname = "cpu"', '[[devices]]\nname = "gpu"\n\n[[devices]]\nname = "cpu"'
).replace('devices = ["cpu"]', 'devices = ["gpu", "cpu"]') + """
[[formats]]
name = "toy-tensor"
task = "tensor"
suffixes = [".toytensor"]
"""  # fmt: skip
SAYS = """
HERE = {here}

@hookimpl
def edgecore_probe():
    (Path(__file__).parents[1] / "probed.log").open("a").write("probed\\n")
    return Probe(tuple(ProbedDevice(name, name in HERE, reason="there is none") for name in ("gpu", "cpu")))

@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    (Path(__file__).parents[1] / "opened.log").open("a").write(device + "\\n")
    return Session({{**options, "vocab": 512}}) if artifact.task == "text" else Doubler()

@hookimpl
def edgecore_benchmark(artifact, device, workload, options, progress):
    assert artifact.task == "tensor", "only that is measured here"
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    install_plugin(tmp_path / "site", hooks=SAYS.format(here=["cpu"]), manifest=GPU_FIRST)
    return tmp_path / "site"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.toytensor"
    path.write_text("toy")
    np.savez(tmp_path / "feeds.npz", x=np.arange(3, dtype=np.float32))
    return path


def opened(site: Path, model: Path, *more: object) -> str:
    """The device on which `run` opened the model."""
    feeds, out = model.with_name("feeds.npz"), model.with_name("out.npz")
    run = edgecore("run", model, "--backend", "toy", "--inputs", feeds, "--out", out, *more)
    assert run.code == 0, run.err
    return lines(site / "opened.log")[-1]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def finds(site: Path, *here: str) -> None:
    (hooks,) = site.glob("edgecore_toy/hooks.py")
    hooks.write_text(hooks.read_text().replace("HERE = ['cpu']", f"HERE = {list(here)!r}"))


def test_a_first_device_that_is_here_is_asked_about_once(site: Path, model: Path) -> None:
    finds(site, "gpu", "cpu")
    assert [opened(site, model) for _ in range(2)] == ["gpu", "gpu"]
    assert len(lines(site / "probed.log")) == 1


def test_a_device_that_was_missing_is_taken_once_it_is_here(site: Path, model: Path) -> None:
    assert opened(site, model) == "cpu"
    finds(site, "gpu", "cpu")
    assert opened(site, model) == "gpu"


def test_a_native_benchmark_that_answers_none_leaves_the_task_to_the_contracts_loop(
    site: Path, model: Path, tmp_path: Path
) -> None:
    how = ("--backend", "toy", "--pairs", "2", "-n", "3", "--json")
    made_up = edgecore("benchmark", model, *how)
    assert made_up.code in (0, 1), made_up.err
    (arm,) = made_up.json["arms"]
    assert not arm["native_loop"]
    fed = edgecore("benchmark", model, *how, "--inputs", tmp_path / "feeds.npz")
    assert fed.code in (0, 1), fed.err
    wrong = edgecore("benchmark", model, *how, "--inputs", tmp_path / "missing.npz")
    assert wrong.code == 2
    assert "missing.npz" in wrong.json["what"]


def test_a_native_file_that_is_no_source_is_not_said_to_be_converted(site: Path, model: Path) -> None:
    rows = {row["name"]: row["how"] for row in edgecore("inspect", model, "--json").json["backends"]}
    assert rows["toy"] == "as it is (toy-tensor)"


def test_a_probe_of_another_version_of_the_plugin_is_not_trusted(site: Path, model: Path) -> None:
    finds(site, "gpu", "cpu")
    assert opened(site, model) == "gpu"
    record = probing._file("toy")
    record.write_text(record.read_text().replace('"plugin": "1.0"', '"plugin": "0.9"'))
    assert opened(site, model) == "gpu"
    assert len(lines(site / "probed.log")) == 2
