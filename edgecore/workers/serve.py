"""The worker process: answers calls one after the other, streams in between, and never outlives its caller.

The main thread runs plugin code. A second one reads requests, so that a cancellation is seen while a hook runs, and
ends the process when the caller is gone. Where native code holds the interpreter for long, or the process is stopped,
that thread cannot run: on Linux a pipe that the caller holds open, its lifeline, raises SIGKILL in the process group
when it closes.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from time import monotonic
from typing import Any

REPORT_SECONDS = 0.05
"""At most one progress message in this time: plugins may report as often as they like."""


def main() -> None:
    """Entry of the process: the lifeline's descriptor is the first argument."""
    requests, answers = _private_channels()
    _hold_lifeline(int(sys.argv[1]))
    from edgecore.workers.arena import ArenaReader, ArenaWriter
    from edgecore.workers.wire import Codec

    Server(requests, answers, Codec(ArenaWriter(), ArenaReader())).run()


def _private_channels() -> tuple[Any, int]:
    """Standard input and output, moved where nobody prints: what remains on 1 is the log, on 0 nothing."""
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)
    return open(requests, "rb"), answers


def _hold_lifeline(fd: int) -> None:
    if fd < 0:
        return
    os.set_inheritable(fd, False)
    if not sys.platform.startswith("linux"):
        return  # Elsewhere it would be SIGIO, ignored by default; the reading thread alone sees the end.
    import fcntl
    import select
    import signal

    # Not SIGIO: a process that is stopped would not act on it, and a runtime may handle it.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
    # The group, not the process: what a plugin started ends too.
    fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(fd, 0)
    if poll.poll(0):  # It closed before we listened.
        _end_group()


def _end_group() -> None:
    if os.name == "posix" and os.getpgrp() == os.getpid():
        import signal

        os.killpg(0, signal.SIGKILL)
    os._exit(1)


@dataclass
class _Stream:
    """An iterator that is sent piece by piece, as far as the caller gave credit."""

    call: int
    target: int
    iterator: Iterator[Any]
    doing: str
    credit: int = 0
    held: bool = False
    """True once another call used the session: from then on it runs only when the caller waits for it."""
    tokens: int = 0
    """Tokens in the pieces sent so far."""


@dataclass
class Server:
    """The loop. Objects that live here (sessions, weights) are known to the caller by number; 0 is the backend."""

    requests: Any
    answers: int
    codec: Any
    host: Any = None
    objects: dict[int, Any] = field(default_factory=dict)
    streams: dict[int, _Stream] = field(default_factory=dict)
    inbox: SimpleQueue[list[Any]] = field(default_factory=SimpleQueue)
    waiting: set[int] = field(default_factory=set)
    """Calls whose turn has not come."""
    cancelled: set[int] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        threading.Thread(target=self._read, name="edgecore-requests", daemon=True).start()
        handlers: dict[str, Callable[..., bool]] = {
            "call": self._call,
            "more": self._more,
            "cancel": self._cancel,
            "drop": self._drop,
            "bye": self._bye,
        }
        going = True
        while going:
            stream = next((s for s in self.streams.values() if s.credit), None)
            if stream is not None and self.inbox.empty():
                self._advance(stream)
            else:
                kind, *rest = self.inbox.get()
                going = handlers[kind](*rest)
        for thing in self.objects.values():
            if hasattr(thing, "close"):
                with suppress(Exception):
                    thing.close()
        sys.stdout.flush()
        # Not sys.exit: threads and exit handlers of runtimes hang, and nothing here is worth waiting for.
        os._exit(0)

    def _read(self) -> None:
        from edgecore.workers.transport import read_frame

        while (frame := read_frame(self.requests)) is not None:
            message = self.codec.unpack(frame)
            if message[0] == "call":
                self.waiting.add(message[1])
            elif message[0] == "cancel":
                self.cancelled.add(message[1])
                if self._take(message[1]):
                    self._send("end", message[1])
            self.inbox.put(message)
        _end_group()

    def _take(self, call: int) -> bool:
        """Whether a call still waited. Only one thread gets it: the one that begins it, or the one that cancels it."""
        try:
            self.waiting.remove(call)
        except KeyError:
            return False
        return True

    def _send(self, *message: Any) -> None:
        from edgecore.workers.transport import write_frame

        with self.lock:
            try:
                write_frame(self.answers, self.codec.pack(message))
            except BrokenPipeError:
                _end_group()

    # ---- requests ----

    def _call(self, call: int, target: int, method: str, arguments: list[Any], keywords: dict[str, Any]) -> bool:
        if not self._take(call):
            return True
        self._hold(target, method)
        try:
            answer = self._answer(call, target, method, arguments, keywords)
            self._send("answer", call, answer)
        except BaseException as error:
            self._fail(call, error, method)
        if call not in self.streams:
            self.cancelled.discard(call)
        return True

    def _more(self, call: int, credit: int, waiting: bool) -> bool:
        stream = self.streams.get(call)
        if stream and (waiting or not stream.held):
            stream.credit += credit
        return True

    def _cancel(self, call: int, seen: int) -> bool:
        """End a stream, and take back the tokens that it computed ahead of what its reader saw."""
        stream = self.streams.pop(call, None)
        self.cancelled.discard(call)
        if stream is None:
            return True
        try:
            if hasattr(stream.iterator, "close"):
                stream.iterator.close()
            session = self.objects.get(stream.target)
            ahead = stream.tokens - seen
            if ahead > 0 and not stream.held and session is not None:
                context = session.context()
                context.rewind(min(ahead, context.position))
        except Exception as error:
            print(f"while ending a stream: {error}", file=sys.stderr, flush=True)
        self._send("end", call)
        return True

    def _drop(self, target: int) -> bool:
        thing = self.objects.pop(target, None)
        with suppress(Exception):
            getattr(thing, "close", lambda: None)()
        return True

    def _bye(self) -> bool:
        return False

    # ---- answers ----

    def _answer(self, call: int, target: int, method: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if method == "hello":
            return self._hello(**keywords)
        if target == 0:
            if method in _WITH_PROGRESS:
                keywords["progress"] = _Report(self, call)
            return self._keep(self.host.call(method, keywords))
        if target not in self.objects:
            from edgecore.contract.errors import BadRequest

            raise BadRequest("this session is closed")
        from edgecore.workers.methods import method_of

        thing = self.objects[target]
        answer = method_of(thing, method)(*arguments, **keywords)
        if method == "close":
            del self.objects[target]
            return None
        if method in ("generate", "score"):
            self.streams[call] = _Stream(call, target, iter(answer), method)
            return None
        return answer

    def _hello(self, protocol: int, backend: str, hooks: str, search_path: list[str]) -> dict[str, Any]:
        from edgecore import __version__
        from edgecore.contract.errors import BackendUnavailable
        from edgecore.workers.host import Host
        from edgecore.workers.wire import PROTOCOL

        if protocol != PROTOCOL:
            raise BackendUnavailable(
                f"the environment of {backend!r} has edgecore {__version__}, which speaks another protocol",
                hint=f"edgecore plugin install {backend}",
            )
        self.host = Host(backend, hooks, search_path)
        versions = {"edgecore": __version__, "python": sys.version.partition(" ")[0]}
        return {"hooks": sorted(self.host.hooks), "versions": versions}

    def _keep(self, answer: Any) -> Any:
        """Sessions and lazy mappings stay here; the caller gets their number and what never changes about them."""
        from edgecore.workers.methods import describe

        facts = describe(answer)
        if facts is None:
            return answer
        number = max(self.objects, default=0) + 1
        self.objects[number] = answer
        return {"object": number, **facts}

    def _hold(self, target: int, method: str) -> None:
        if not method.startswith(("context.", "generate", "score", "close")):
            return
        for stream in self.streams.values():
            if stream.target == target and not stream.held:
                stream.held, stream.credit = True, 0
                self._send("held", stream.call)

    def _advance(self, stream: _Stream) -> None:
        try:
            piece = next(stream.iterator)
            stream.credit -= 1
            if stream.doing == "generate":
                stream.tokens += piece.token >= 0
                self._send("piece", stream.call, piece.token, piece.text, piece.finish)
            else:
                self._send("item", stream.call, piece)
        except StopIteration:
            del self.streams[stream.call]
            self._send("end", stream.call)
        except BaseException as error:
            self.streams.pop(stream.call, None)
            self._fail(stream.call, error, stream.doing)

    def _fail(self, call: int, error: BaseException, doing: str) -> None:
        from edgecore.workers.faults import as_error, to_wire

        backend = self.host.backend if self.host else "?"
        self._send("error", call, to_wire(as_error(error, backend, doing)))


_WITH_PROGRESS = ("edgecore_convert", "edgecore_quantize", "edgecore_benchmark", "edgecore_compile")


class _Report:
    """`Progress` inside a worker: rarely a message, and the place where a cancellation comes up."""

    def __init__(self, server: Server, call: int) -> None:
        self._server, self._call = server, call
        self._stage: str | None = None
        self._last: tuple[int, int] = (-1, -1)
        self._when = 0.0

    def __call__(self, done: int, total: int, stage: str = "") -> None:
        if self._call in self._server.cancelled:
            from edgecore.contract.errors import Cancelled

            raise Cancelled("cancelled by the caller")
        now = monotonic()
        news = stage != self._stage or (done >= total and (done, total) != self._last)
        if news or now - self._when >= REPORT_SECONDS:
            self._stage, self._last, self._when = stage, (done, total), now
            self._server._send("progress", self._call, int(done), int(total), stage)


if __name__ == "__main__":
    main()
