"""How a worker is reached. The interface is small so that another machine can be one more transport.

Frames are length-prefixed bytes on the worker's standard input and output, which it moves away before any plugin code
runs: what native code prints goes to the log, never into the protocol.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from typing import BinaryIO, Protocol

LENGTH = struct.Struct("<Q")
TAIL_BYTES = 1 << 14

QUIET = {
    "DO_NOT_TRACK": "1",
    "DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "OLIVE_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "ANONYMIZED_TELEMETRY": "false",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Set in every worker before a runtime is imported: nothing phones home, and no library forks behind our back."""

_HERE = """\
import json, sys
sys.path[:] = json.loads(sys.argv[2])
from edgecore.workers.serve import main
main()
"""


class Transport(Protocol):
    """Carries frames to one worker and knows how it ended."""

    shared_memory: bool
    """Whether both sides can map the same memory."""
    pid: int
    """On the machine where the worker runs."""

    def send(self, frame: bytes) -> None:
        """Raises `OSError` when the worker is gone. Callers hold a lock."""

    def receive(self) -> bytes | None:
        """The next frame; None when the worker is gone. Called from one thread."""

    def kill(self) -> None:
        """End the worker and everything that it started, now. Ending it twice is fine."""

    def wait(self, timeout: float) -> int | None:
        """Exit status once it ended, negative for a signal; None when it still runs after `timeout` seconds."""

    def tail(self) -> str:
        """The end of what the worker wrote to standard output and standard error."""

    def close(self) -> None:
        """Give back files and pipes; the worker has ended."""


class LocalProcess:
    """A worker on this machine, in any interpreter that has edgecore."""

    shared_memory = True

    def __init__(self, python: str, *, foreign: bool = False, environ: Mapping[str, str] | None = None) -> None:
        """foreign: an environment of its own, which must not see this interpreter's path.

        Raises `OSError` when the interpreter cannot be started.
        """
        variables = {**os.environ, **QUIET, **(environ or {})}
        if foreign:
            for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV"):
                variables.pop(name, None)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        lifeline, self._lifeline = os.pipe()
        command = [python, *(["-I", "-m", "edgecore.workers.serve"] if foreign else ["-c", _HERE])]
        command += [str(lifeline) if os.name == "posix" else "-1"]
        command += [] if foreign else [json.dumps([p or os.getcwd() for p in sys.path])]
        try:
            # A session of its own: Ctrl-C at the terminal reaches the caller alone, which then decides.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=variables,
                bufsize=0,
                start_new_session=True,
                pass_fds=[lifeline] if os.name == "posix" else (),
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except BaseException:
            self._log.close()
            os.close(self._lifeline)
            raise
        finally:
            os.close(lifeline)
        self.pid = self._process.pid
        assert self._process.stdin
        assert self._process.stdout
        self._to = self._process.stdin
        self._from: BinaryIO = open(self._process.stdout.fileno(), "rb", closefd=False)  # noqa: SIM115

    def send(self, frame: bytes) -> None:
        if self._to.closed:
            raise BrokenPipeError("the worker was closed")
        try:
            write_frame(self._to.fileno(), frame)
        except OSError:
            raise
        except BaseException:  # Ctrl-C in the middle: what follows half a frame cannot be understood.
            self.kill()
            raise

    def receive(self) -> bytes | None:
        return read_frame(self._from)

    def kill(self) -> None:
        if self._process.returncode is not None:
            return
        if os.name == "posix":
            # The leader was not waited for, so its id cannot belong to another group by now.
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            except PermissionError:  # macOS says so of a group whose last member is a zombie.
                self._process.kill()
        else:
            _kill_tree(self.pid)

    def wait(self, timeout: float) -> int | None:
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def tail(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        # The worker shares the file's position: reading must not move it.
        if hasattr(os, "pread"):
            data = os.pread(self._log.fileno(), TAIL_BYTES, max(0, size - TAIL_BYTES))
        else:
            self._log.seek(max(0, size - TAIL_BYTES))
            data = self._log.read()
        return data.decode("utf-8", "replace")

    def close(self) -> None:
        for stream in (self._to, self._from, self._process.stdout, self._log):
            if stream:
                with suppress(OSError):
                    stream.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


def write_frame(fd: int, frame: bytes) -> None:
    """All of it, in one system call where it is small."""
    view = memoryview(LENGTH.pack(len(frame)) + frame)
    while view:
        view = view[os.write(fd, view) :]


def read_frame(stream: BinaryIO) -> bytes | None:
    """None at the end of the stream, also inside a frame: the other side died while it wrote."""
    try:
        head = stream.read(LENGTH.size)
        if len(head) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack(head)
        frame = stream.read(length)
    except (OSError, ValueError):
        return None
    return frame if len(frame) == length else None


def _kill_tree(pid: int) -> None:
    import psutil

    try:
        process = psutil.Process(pid)
        for child in [*process.children(recursive=True), process]:
            child.kill()
    except psutil.NoSuchProcess:
        pass
