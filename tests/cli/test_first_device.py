"""A backend whose first device is not on every machine: without --device, the first that is here is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.cli import edgecore
from support.plugins import MANIFEST, install_plugin
from support.tiny import tiny_llama

GPU_FIRST = (
    MANIFEST.format(name="toy", contract="1.0", package="edgecore_toy", distribution="edgecore-toy")
    .replace('[[devices]]\nname = "cpu"', '[[devices]]\nname = "gpu"\n\n[[devices]]\nname = "cpu"')
    .replace('devices = ["cpu"]', 'devices = ["gpu", "cpu"]')
)
HOOKS = """
@hookimpl
def edgecore_probe():
    return Probe((ProbedDevice("gpu", {here}, reason="there is none"), ProbedDevice("cpu", {cpu})))

@hookimpl
def edgecore_convert(source, out, format, precision, options, limits, progress):
    (out / "model.toy").write_text("toy")
    return Made((PayloadFile("model.toy", "model"),))

@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    with open(os.environ["OPENED"], "a") as log:
        log.write(device + " ")
    return Session({{**options, "vocab": 512}})
"""


@pytest.mark.parametrize(
    ("gpu", "cpu", "asked", "opened"),
    [
        (True, True, "", "gpu"),
        (False, True, "", "cpu"),
        (False, True, "gpu", "gpu"),  # whoever asks for it is told by the backend what is missing
        (False, False, "", "gpu"),
    ],
)
def test_the_first_device_that_is_here_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool, cpu: bool, asked: str, opened: str
) -> None:
    install_plugin(tmp_path / "site", hooks=HOOKS.format(here=gpu, cpu=cpu), manifest=GPU_FIRST)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("OPENED", str(tmp_path / "opened"))
    model = tmp_path / "model.toy"
    model.write_bytes(b"toy")
    words = ("run", model, "--backend", "toy", "-p", "a", "-n", "2", *(("--device", asked) if asked else ()))
    done = edgecore(*words)
    assert done.code == 0, done.err
    assert (tmp_path / "opened").read_text().split() == [opened]


def test_what_was_converted_is_compared_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_plugin(tmp_path / "site", hooks=HOOKS.format(here=False, cpu=True), manifest=GPU_FIRST)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("OPENED", str(tmp_path / "opened"))
    made = edgecore("convert", tiny_llama(tmp_path / "tiny"), "--backend", "toy", "--keep-refused", "--json")
    assert made.code == 0, made.out
    assert set((tmp_path / "opened").read_text().split()) == {"cpu"}
