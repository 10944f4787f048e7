"""Every way in which a worker or its caller can end: an error for the caller, and nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgecore import registry
from edgecore.contract.errors import BackendUnavailable, DoesNotFit, EdgecoreError, Timeout, WorkerCrashed
from edgecore.contract.sessions import TextSession
from edgecore.workers import Backend, connect

from support.plugins import toy_artifact, write_plugin

posix = pytest.mark.skipif(os.name != "posix", reason="needs signals of POSIX")
linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs Linux, where a closed pipe ends a process"
)

HOOKS = """
libc = ctypes.CDLL(None)
held = ctypes.PyDLL(None)  # calls through it keep the interpreter's lock

def act(what):
    if what == "segfault":
        print("about to crash", flush=True)
        ctypes.string_at(0)
    if what == "abort":
        sys.stderr.write("GGML_ASSERT(false) failed\\n")
        sys.stderr.flush()
        libc.abort()
    if what == "exit":
        os._exit(7)
    if what == "hang":
        time.sleep(600)
    if what == "hold":
        held.sleep(600)
    if what == "child":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        held.sleep(600)
    if what == "print":
        libc.puts(b"printed by C")
        libc.fflush(None)
        os.write(1, b"written to 1\\n")
        print("printed by Python")
    if what == "eat":
        kept = []
        while True:
            kept.append(bytearray(20_000_000))
            time.sleep(0.005)
    if what == "map":
        np.memmap(__file__, mode="r").sum()
        import mmap
        shared = mmap.mmap(-1, 200_000_000)
        shared.write(bytes(200_000_000))

@hookimpl
def edgecore_convert(source, out, format, progress):
    if format == "swallow":
        while True:
            try:
                progress(1, 10)
            except Cancelled:
                print("never!", flush=True)
            time.sleep(0.01)
    if format == "obey":
        try:
            while True:
                progress(1, 10)
                time.sleep(0.01)
        finally:
            (out / "cleaned up").touch()
    if format == "doze":
        (out / "begun").touch()
        time.sleep(1.5)
    act(format)
    return Made(())

class Dying(Session):
    def generate(self, tokens, **how):
        for token in range(3):
            yield Piece(token + 1, "x")
        while how["stop"][0] == "endless":
            time.sleep(0.01)
            yield Piece(9, "x")
        act(how["stop"][0])
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    extra = "\n@hookimpl\ndef edgecore_run(artifact):\n    return Dying({})\n"
    return write_plugin(tmp_path / "plugin", "dying", hooks=HOOKS + extra)


@pytest.fixture
def backend(path: Path) -> Iterator[Backend]:
    with connect(registry.find(path)) as backend:
        yield backend


def convert(backend: Backend, out: Path, what: str, **how: Any) -> Any:
    return backend.convert(source=out, out=out, format=what, precision="f16", **how)


@posix
@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("segfault", "died of SIGSEGV during convert; its last lines:\n    about to crash"),
        ("abort", "died of SIGABRT during convert; its last lines:\n    GGML_ASSERT(false) failed"),
        ("exit", "exited with status 7 during convert; it wrote nothing"),
    ],
)
def test_a_crash_is_an_answer_with_the_signal_and_the_last_lines(
    backend: Backend, tmp_path: Path, what: str, says: str
) -> None:
    with pytest.raises(WorkerCrashed) as caught:
        convert(backend, tmp_path, what)
    assert says in caught.value.what
    assert caught.value.exit_code == 4
    with pytest.raises(WorkerCrashed):
        backend.probe()


@posix
def test_a_crash_in_the_middle_of_a_stream_ends_the_stream(backend: Backend, tmp_path: Path) -> None:
    session = text(backend, tmp_path)
    stream = session.generate([1], stop=["segfault"])
    assert [next(stream).token for _ in range(3)] == [1, 2, 3]
    with pytest.raises(WorkerCrashed, match="SIGSEGV"):
        next(stream)
    with pytest.raises(WorkerCrashed):
        session.tokenize("x")
    session.close()


@posix
def test_a_runtime_that_crashes_at_import_is_an_answer_too(tmp_path: Path) -> None:
    path = write_plugin(tmp_path / "p", "crashing", hooks="os.kill(os.getpid(), signal.SIGILL)")
    with pytest.raises(WorkerCrashed, match="SIGILL"):
        connect(registry.find(path))


def test_what_native_code_prints_reaches_the_log_and_not_the_protocol(
    backend: Backend, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        convert(backend, tmp_path, "print")
    for line in ("printed by C", "written to 1", "printed by Python"):
        assert backend.log().count(line) == 3
    assert "printed" not in "".join(capfd.readouterr())


def test_a_deadline_ends_a_call_that_obeys_and_the_worker_lives(backend: Backend, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(Timeout, match="convert before its deadline"):
        convert(backend, tmp_path, "obey", deadline=0.3)
    assert time.monotonic() - start < 1.5
    assert (tmp_path / "cleaned up").exists()
    assert backend.probe().devices


def test_a_worker_has_two_seconds_to_stop(backend: Backend, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(Timeout):
        convert(backend, tmp_path, "hang", deadline=0.2)
    assert 2 < time.monotonic() - start < 5


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that are about something else than how long it takes."""
    monkeypatch.setattr("edgecore.workers.channel.GRACE", 0.3)


def test_a_call_whose_turn_has_not_come_is_given_up_without_harm_to_the_one_before(
    backend: Backend, tmp_path: Path, short_grace: None
) -> None:
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(convert, backend, tmp_path, "doze")
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        with pytest.raises(Timeout):
            backend.probe(deadline=0.1)
        assert first.result() is not None
    assert backend.probe().devices


@pytest.mark.parametrize("what", ["hang", "hold", "swallow"])
def test_a_deadline_kills_a_worker_that_does_not_listen(
    backend: Backend, tmp_path: Path, what: str, short_grace: None
) -> None:
    with pytest.raises(Timeout):
        convert(backend, tmp_path, what, deadline=0.2)
    assert gone(backend.pid)
    with pytest.raises(EdgecoreError, match="ended"):
        backend.probe()


def test_a_session_has_a_deadline_for_every_answer(backend: Backend, tmp_path: Path, short_grace: None) -> None:
    session = text(backend, tmp_path)
    session.deadline = 0.3  # type: ignore[attr-defined]
    assert session.tokenize("a") == [97]
    with pytest.raises(Timeout):
        list(session.generate([1], stop=["hang"]))


def test_a_worker_above_its_memory_limit_is_ended(path: Path, tmp_path: Path) -> None:
    with connect(registry.find(path), memory_limit=300 << 20) as backend:
        convert(backend, tmp_path, "map")  # what is not anonymous does not count
        with pytest.raises(DoesNotFit, match=r"held 3\d\d MiB, more than its limit of 300 MiB"):
            convert(backend, tmp_path, "eat")
        assert gone(backend.pid)


@posix
def test_a_worker_is_killed_with_what_it_started(backend: Backend, tmp_path: Path, short_grace: None) -> None:
    with pytest.raises(Timeout):
        convert(backend, tmp_path, "child", deadline=0.5)
    assert gone(backend.pid)
    assert all(gone(process.pid) for process in psutil.process_iter() if group(process.pid) == backend.pid)


def test_a_backend_that_is_forgotten_leaves_no_worker(path: Path) -> None:
    backend = connect(registry.find(path))
    pid = backend.pid
    del backend
    assert gone(pid)


@posix
def test_a_fork_of_the_caller_that_ends_does_not_end_the_worker(backend: Backend) -> None:
    child = os.fork()
    if child == 0:
        try:
            backend.close()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert backend.probe().devices


def test_an_interpreter_that_is_gone_is_unavailable(path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="cannot be started"):
        connect(replace(registry.find(path), python="/no/such/python"))


CALLER = """
import sys, time
from pathlib import Path
from edgecore import registry
from edgecore.workers import connect

def report(done, total, stage=""):
    print("working", backend.pid, flush=True)

backend = connect(registry.find(Path(sys.argv[1])))
print("started", backend.pid, flush=True)
what = sys.argv[2]
if what == "forget":
    sys.exit(0)
if what == "idle":
    time.sleep(600)
if what == "endless":
    from edgecore.contract import Artifact
    session = backend.open(Artifact(Path("."), "dying", "text", "toy", "f16", ()), device="cpu")
    try:
        for piece in session.generate([1], stop=[what]):
            pass
    except KeyboardInterrupt:
        print("interrupted", session.tokenize("a"), next(session.generate([1], stop=[what])).token, flush=True)
        sys.exit(130)
try:
    backend.convert(source=Path("."), out=Path("."), format=what, precision="f16", on_progress=report)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    if what == "obey":
        print("alive", backend.probe().devices[0].name, flush=True)
    sys.exit(130)
"""


class Caller:
    """A program of its own that uses a worker."""

    def __init__(self, path: Path, what: str, cwd: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(CALLER), str(path), what],
            stdout=subprocess.PIPE, cwd=cwd, text=True, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout
        self.output = self.process.stdout
        self.worker = int(self.output.readline().split()[1])
        time.sleep(0.3)

    def end(self, number: int) -> str:
        os.killpg(self.process.pid, number)
        rest = self.output.read()
        self.process.wait(10)
        return rest


@pytest.fixture
def caller(path: Path, tmp_path: Path) -> Iterator[Callable[[str], Caller]]:
    made: list[Caller] = []

    def start(what: str) -> Caller:
        made.append(Caller(path, what, tmp_path))
        return made[-1]

    yield start
    for one in made:
        one.process.kill()
        one.process.wait()
        one.output.close()


@posix
@pytest.mark.parametrize("what", ["idle", "hang", "obey", pytest.param("hold", marks=linux)])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_caller_leaves_no_orphan(caller: Callable[[str], Caller], what: str, number: int) -> None:
    one = caller(what)
    one.end(number)
    assert gone(one.worker)


@linux
def test_a_killed_caller_leaves_no_grandchild(caller: Callable[[str], Caller]) -> None:
    one = caller("child")
    children = psutil.Process(one.worker).children(recursive=True)
    assert children
    one.end(signal.SIGKILL)
    assert all(gone(child.pid) for child in children)


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_caller_leaves_no_worker_that_is_stopped(caller: Callable[[str], Caller], number: int) -> None:
    one = caller("idle")
    os.kill(one.worker, signal.SIGSTOP)
    while psutil.Process(one.worker).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    one.end(number)
    assert gone(one.worker)


@posix
def test_ctrl_c_asks_the_worker_to_stop_and_keeps_it(caller: Callable[[str], Caller], tmp_path: Path) -> None:
    one = caller("obey")
    said = one.end(signal.SIGINT)
    assert "interrupted\nalive cpu\n" in said
    assert one.process.returncode == 130
    assert (tmp_path / "cleaned up").exists()
    assert gone(one.worker)


@posix
def test_ctrl_c_ends_an_answer_and_keeps_the_session(caller: Callable[[str], Caller]) -> None:
    one = caller("endless")
    assert one.end(signal.SIGINT) == "interrupted [97] 1\n"
    assert gone(one.worker)


@posix
@pytest.mark.parametrize("what", ["hang", "hold"])
def test_ctrl_c_ends_a_worker_that_does_not_listen(caller: Callable[[str], Caller], what: str) -> None:
    one = caller(what)
    start = time.monotonic()
    assert "interrupted" in one.end(signal.SIGINT)
    assert time.monotonic() - start < 6
    assert one.process.returncode == 130
    assert gone(one.worker)


@posix
def test_a_caller_that_forgets_to_close_leaves_nothing(caller: Callable[[str], Caller]) -> None:
    one = caller("forget")
    assert one.process.wait(10) == 0
    assert gone(one.worker)


def text(backend: Backend, folder: Path) -> TextSession:
    session = backend.open(toy_artifact(folder / "a"), device="cpu")
    assert isinstance(session, TextSession)
    return session


def gone(pid: int, seconds: float = 3.0) -> bool:
    """Whether a process ends within some seconds. One that nobody waited for counts as ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return -1
