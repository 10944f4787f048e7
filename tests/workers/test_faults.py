"""What a plugin does wrong is a typed error that says where, and the worker goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgecore.contract.errors import (
    BackendUnavailable,
    BadRequest,
    Cancelled,
    DoesNotFit,
    PluginFault,
    UnsupportedModel,
)
from edgecore.workers import Backend

from support.plugins import toy_artifact

Connect = Callable[..., Backend]


def test_typed_errors_of_a_plugin_arrive_as_they_were_raised(plugin: Connect, tmp_path: Path) -> None:
    backend = plugin("""
    class Special(UnsupportedModel):
        pass

    @hookimpl
    def edgecore_convert(source, out):
        raise Special("no such family", supported="llama", hint="edgecore inspect x")
    """)
    with pytest.raises(UnsupportedModel) as caught:
        convert(backend, tmp_path)
    assert (caught.value.what, caught.value.supported, caught.value.hint) == (
        "no such family", "llama", "edgecore inspect x",
    )  # fmt: skip
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("isolated", [True, False])
def test_foreign_exceptions_are_the_plugins_fault_and_say_where(
    plugin: Connect, tmp_path: Path, isolated: bool
) -> None:
    backend = plugin(
        """
    @hookimpl
    def edgecore_convert(source, out):
        return {}["missing key"]

    @hookimpl
    def edgecore_quantize(artifact, out):
        sys.exit(0)

    @hookimpl
    def edgecore_run(artifact):
        return "not a session"
    """,
        isolated=isolated,
    )
    with pytest.raises(PluginFault, match=r"KeyError: 'missing key'\n.*hooks.py:\d+ in edgecore_convert"):
        convert(backend, tmp_path)
    with pytest.raises(PluginFault, match="SystemExit"):
        backend.quantize(artifact=toy_artifact(tmp_path / "a"), out=tmp_path, precision="f16")
    with pytest.raises(PluginFault, match="not a TextSession or a TensorSession"):
        backend.open(toy_artifact(tmp_path / "a"), device="cpu")
    assert backend.probe().devices


@pytest.mark.parametrize("isolated", [True, False])
def test_a_full_disk_and_a_full_memory_are_said_as_what_they_are(
    plugin: Connect, tmp_path: Path, isolated: bool
) -> None:
    backend = plugin(
        """
    import errno

    @hookimpl
    def edgecore_convert(source, out):
        raise OSError(errno.ENOSPC, "No space left on device", str(out / "model"))

    @hookimpl
    def edgecore_quantize(artifact, out):
        raise MemoryError("cannot allocate 9 PiB")
    """,
        isolated=isolated,
    )
    with pytest.raises(DoesNotFit, match=r"disk is full.*model"):
        convert(backend, tmp_path)
    with pytest.raises(DoesNotFit, match="ran out of memory"):
        backend.quantize(artifact=toy_artifact(tmp_path / "a"), out=tmp_path, precision="f16")


@pytest.mark.parametrize(
    ("hooks", "error", "says"),
    [
        ("@hookimpl\ndef edgecore_covert(source):\n    pass", PluginFault, "did you mean edgecore_convert"),
        ("def edgecore_compile(artifact):\n    pass", PluginFault, "edgecore_compile is not marked"),
        ("@hookimpl\ndef edgecore_run(artefact):\n    pass", PluginFault, "artefact"),
        ("import no_such_runtime", BackendUnavailable, "No module named 'no_such_runtime'"),
        ("1 / 0", PluginFault, "ZeroDivisionError"),
        ("def broken(:", PluginFault, "SyntaxError"),
    ],
)
@pytest.mark.parametrize("isolated", [True, False])
def test_a_hooks_module_that_cannot_work_is_refused_when_it_is_loaded(
    plugin: Connect, hooks: str, error: type[Exception], says: str, isolated: bool
) -> None:
    with pytest.raises(error, match=says):
        plugin(hooks, isolated=isolated)


def test_what_isolation_alone_can_give_is_refused_without_it(plugin: Connect) -> None:
    with pytest.raises(BadRequest, match="memory limit"):
        plugin(isolated=False, memory_limit=1 << 30)


def test_progress_that_raises_stops_the_call_and_the_worker_lives(plugin: Connect, tmp_path: Path) -> None:
    backend = plugin(ENDLESS)

    def stop(done: int, total: int, stage: str = "") -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        convert(backend, tmp_path, on_progress=stop)
    assert backend.probe().devices


ENDLESS = """
@hookimpl
def edgecore_convert(source, out, progress):
    for n in range(10**9):
        progress(n, 10**9, "for ever")
        time.sleep(0.001)
"""


def convert(backend: Backend, folder: Path, **how: Any) -> Any:
    return backend.convert(source=folder, out=folder, format="toy", precision="f16", **how)
