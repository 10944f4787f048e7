"""The caller's end: sends calls, waits for answers without polling, and turns every way a worker can end into an error.

A thread reads what the worker sends, because it is never interrupted: Ctrl-C in the middle of a frame would lose the
frame.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

from edgecore.contract.errors import BadRequest, EdgecoreError, Timeout, WorkerCrashed, from_wire
from edgecore.contract.progress import Progress
from edgecore.workers.arena import ArenaReader, ArenaWriter
from edgecore.workers.transport import Transport
from edgecore.workers.wire import Codec

GRACE = 2.0
"""Seconds between asking a worker to stop and killing it."""
SHOWN_LINES = 12
"""Last lines of the log that stand in `WorkerCrashed`."""

Inbox = SimpleQueue[list[Any]]


@dataclass
class _Line:
    """What the reading thread shares with the channel. The thread holds no channel, so a forgotten one is collected."""

    transport: Transport
    reader: ArenaReader
    writer: ArenaWriter
    codec: Codec
    inboxes: dict[int, Inbox] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)
    sending: threading.Lock = field(default_factory=threading.Lock)
    posted: deque[tuple[Any, ...]] = field(default_factory=deque)
    owner: int = field(default_factory=os.getpid)


class Channel:
    """Calls to one worker. Thread-safe; calls are answered in the order in which they were made."""

    def __init__(self, transport: Transport, backend: str) -> None:
        self.backend = backend
        self.transport = transport
        self._reason: EdgecoreError | None = None
        self._doing = "starting"
        self._numbers = itertools.count(1)
        reader, writer = ArenaReader(), ArenaWriter()
        codec = Codec(writer, reader) if transport.shared_memory else Codec()
        self._line = _Line(transport, reader, writer, codec)
        thread = threading.Thread(target=_read, args=(self._line,), name=f"edgecore-{backend}", daemon=True)
        thread.start()
        # Also at interpreter exit: a caller that forgot to close leaves no worker either.
        self.close = weakref.finalize(self, _shut_down, self._line, thread)

    @property
    def alive(self) -> bool:
        return self.close.alive and not self._line.ended.is_set()

    @property
    def ended(self) -> threading.Event:
        """Set once the worker is gone."""
        return self._line.ended

    def call(
        self,
        method: str,
        *arguments: Any,
        target: int = 0,
        deadline: float | None = None,
        progress: Progress | None = None,
        keywords: Mapping[str, Any] | None = None,
    ) -> Any:
        """The answer, or what the worker raised.

        deadline: seconds from now, then `Timeout`.
        progress: what it raises ends the call and is raised here, as is `KeyboardInterrupt`.
        However a call ends early, the worker is asked to stop, and killed when it has not after `GRACE` seconds.
        """
        number, inbox = self.start(method, arguments, keywords or {}, target)
        until = None if deadline is None else monotonic() + deadline
        answered = False
        try:
            while True:
                kind, *rest = self.next(inbox, until, method)
                if kind == "progress" and progress is not None:
                    progress(*rest)
                elif kind == "answer":
                    answered = True
                    return rest[0]
                elif kind == "error":
                    answered = True
                    raise from_wire(rest[0])
        finally:
            if not answered:
                self.abandon(number, inbox)
            self._line.inboxes.pop(number, None)

    def start(
        self, method: str, arguments: tuple[Any, ...], keywords: Mapping[str, Any], target: int
    ) -> tuple[int, Inbox]:
        """Send a call whose messages arrive in the inbox. Raises when the worker is gone, `BadRequest` for an argument
        that cannot travel."""
        number, inbox, sent = next(self._numbers), Inbox(), False
        self._line.inboxes[number] = inbox
        try:
            if self._line.ended.is_set():
                raise self._gone()
            self._doing = method.removeprefix("edgecore_")
            self.send("call", number, target, method, list(arguments), dict(keywords))
            sent = True
        except UnicodeEncodeError as error:
            raise BadRequest(f"the text is not valid Unicode: {error}", supported="text that UTF-8 can hold") from None
        except (TypeError, OverflowError, ValueError) as error:
            raise BadRequest(f"{self._doing}: {error}") from None
        finally:
            if not sent:
                self._line.inboxes.pop(number, None)
        return number, inbox

    def send(self, *message: Any) -> None:
        """A worker that is gone is noticed by who waits for its answer."""
        with self._line.sending, suppress(OSError):
            self.transport.send(self._line.codec.pack(message))
        self._flush()

    def post(self, *message: Any) -> None:
        """`send` for finalizers: they may run inside a send of this very thread, and then it goes out after that."""
        self._line.posted.append(message)
        self._flush()

    def _flush(self) -> None:
        line = self._line
        while line.posted and line.sending.acquire(blocking=False):
            try:
                with suppress(OSError, IndexError):
                    self.transport.send(line.codec.pack(line.posted.popleft()))
            finally:
                line.sending.release()

    def next(self, inbox: Inbox, until: float | None, doing: str) -> list[Any]:
        """The next message of a call. Raises `Timeout` at `until` (monotonic seconds), `WorkerCrashed` at its end."""
        try:
            message = _get(inbox, None if until is None else max(0.0, until - monotonic()))
        except Empty:
            raise Timeout(
                f"backend {self.backend!r} did not answer {doing.removeprefix('edgecore_')} before its deadline",
                hint="the same with a later deadline",
            ) from None
        if message[0] == "ended":
            raise self._gone()
        return message

    def abandon(self, number: int, inbox: Inbox, seen: int = 0) -> None:
        """Ask for the end of a call, and end the worker when that takes too long."""
        if self._line.ended.is_set():
            return
        try:
            self.send("cancel", number, seen)
            until = monotonic() + GRACE
            while _get(inbox, max(0.0, until - monotonic()))[0] not in ("answer", "error", "end", "ended"):
                pass
        except BaseException as error:  # Time is up, or a second Ctrl-C.
            self.end(Timeout(f"the worker of {self.backend!r} was ended: it did not stop when it was asked to"))
            if not isinstance(error, Empty):
                raise

    def forget(self, number: int, seen: int) -> None:
        """Ask for the end of a stream that nobody reads any more, without waiting."""
        self._line.inboxes.pop(number, None)
        self.post("cancel", number, seen)

    def end(self, reason: EdgecoreError) -> None:
        """Kill the worker; calls that wait, and later ones, raise `reason`."""
        self._reason = self._reason or reason
        self.transport.kill()
        self._line.ended.wait(GRACE)

    def _gone(self) -> EdgecoreError:
        if not self.close.alive:
            return WorkerCrashed(f"the worker of backend {self.backend!r} was closed")
        if self._reason is not None:
            return type(self._reason)(self._reason.what, supported=self._reason.supported, hint=self._reason.hint)
        return WorkerCrashed(self._epitaph(), hint="edgecore doctor")

    def _epitaph(self) -> str:
        """How the worker ended, with the last lines that it wrote."""
        status = self.transport.wait(GRACE)
        lines = [line for line in self.transport.tail().splitlines() if line.strip()][-SHOWN_LINES:]
        said = "; it wrote nothing" if not lines else "; its last lines:" + "".join(f"\n    {line}" for line in lines)
        return f"the worker of backend {self.backend!r} {_ending(status)} during {self._doing}{said}"


def _ending(status: int | None) -> str:
    if status is None:
        return "closed its connection"
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(-status).name
        return f"died of {name}" + (" (the system may have run out of memory)" if name == "SIGKILL" else "")
    except ValueError:
        return f"died of signal {-status}"


def _get(inbox: Inbox, timeout: float | None) -> list[Any]:
    if sys.platform != "win32":
        return inbox.get(timeout=timeout)
    # Windows delivers Ctrl-C only between waits.
    until = None if timeout is None else monotonic() + timeout
    while True:
        left = 0.25 if until is None else min(0.25, until - monotonic())
        try:
            return inbox.get(timeout=max(0.0, left))
        except Empty:
            if until is not None and monotonic() >= until:
                raise


def _read(line: _Line) -> None:
    """The reading thread: messages to the inboxes of their calls, until the worker is gone."""
    try:
        while (frame := line.transport.receive()) is not None:
            kind, number, *rest = line.codec.unpack(frame)
            # Nothing follows these two; what follows an answer, if anything, only its caller knows.
            inbox = line.inboxes.pop(number, None) if kind in ("error", "end") else line.inboxes.get(number)
            if inbox is not None:
                inbox.put([kind, *rest])
    except Exception as error:
        print(f"edgecore: a worker sent what is no message: {error!r}", file=sys.stderr)
        line.transport.kill()
    finally:
        line.ended.set()
        for inbox in list(line.inboxes.values()):
            inbox.put(["ended"])


def _shut_down(line: _Line, thread: threading.Thread) -> None:
    """End a worker in peace where it listens, and by force where it does not."""
    if os.getpid() != line.owner:
        return  # A fork of the caller ends: the worker is not its to end.
    with suppress(OSError), line.sending:
        line.transport.send(line.codec.pack(["bye"]))
    line.ended.wait(GRACE)
    line.transport.kill()
    line.transport.wait(GRACE)
    if thread is not threading.current_thread():  # The garbage collector runs in any thread.
        thread.join(GRACE)
    line.reader.close()
    line.writer.close()
    line.transport.close()
