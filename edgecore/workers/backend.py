"""A backend as its caller sees it: the contract's hooks as methods, answered by a worker or in this process.

Every call goes through pluggy in the caller, where a proxy stands for the backend, so that plugins which only wrap
hooks (an energy meter, a tracer, an audit log) see each call with the caller's own arguments.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgecore.contract.artifacts import Artifact, Made
from edgecore.contract.errors import BackendUnavailable, BadRequest, CannotDo, DoesNotFit
from edgecore.contract.hookspecs import ConvertLimits, Probe
from edgecore.contract.measurement import Samples, Workload
from edgecore.contract.options import Value
from edgecore.contract.progress import Progress, no_progress
from edgecore.contract.sessions import TensorSession, TextSession
from edgecore.registry import Entry
from edgecore.workers import wrapping
from edgecore.workers.channel import Channel
from edgecore.workers.host import Host
from edgecore.workers.limits import guard_memory
from edgecore.workers.proxies import RemoteMapping, RemoteTensorSession, RemoteTextSession
from edgecore.workers.transport import QUIET, LocalProcess
from edgecore.workers.wire import PROTOCOL

START_SECONDS = 120.0
"""For starting a worker and importing the runtime, which is slow from a cold disk."""


def connect(entry: Entry, *, isolated: bool = True, memory_limit: int | None = None, exporter: bool = False) -> Backend:
    """Start a worker for a plugin and load it there. Close the answer, or use it in a `with` block.

    isolated:     False loads the plugin in this process, for callers to whom microseconds count: a crash is then theirs
                  too, and neither deadlines nor memory limits hold.
    memory_limit: bytes of anonymous memory; a worker that holds more is ended, and the call raises `DoesNotFit`.
    exporter:     the ecosystem's own converter that the manifest names, in its own environment where it needs one;
                  it has `convert` only.
    Raises `BackendUnavailable`, `PluginFault` for a hook that is none, `WorkerCrashed` when it dies at import.
    """
    manifest = entry.ready_manifest
    hooks, python, foreign = manifest.hooks, entry.python, entry.origin == "environment"
    if exporter:
        from edgecore.environments import find_exporter

        hooks, python = find_exporter(entry)
        foreign = foreign or python != entry.python
    if not isolated:
        if memory_limit is not None:
            raise BadRequest("a memory limit needs a worker", supported="isolated=True, or no memory limit")
        if foreign:
            raise BackendUnavailable(
                f"{entry.name!r} lives in an environment of its own and cannot run in this process",
                supported="isolated=True",
            )
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        return Backend(entry, _InProcess(Host(entry.name, hooks, entry.search_path)))
    return Backend(entry, _InWorker(entry, hooks, python, foreign, memory_limit))


class Backend:
    """One loaded backend. Methods are the hooks; `deadline` is in seconds for the call, `on_progress` hears how far it
    is and may raise to stop it. After a crash, a kill or `close`, calls raise."""

    def __init__(self, entry: Entry, target: _InWorker | _InProcess) -> None:
        self.entry = entry
        self._target = target
        self.versions: Mapping[str, str] = target.versions
        """Of `edgecore` and `python` where the plugin runs."""

    @property
    def pid(self) -> int:
        """Process in which the plugin runs."""
        return self._target.pid

    def has_hook(self, name: str) -> bool:
        """Whether the plugin implements a hook, named with or without `edgecore_`."""
        return f"edgecore_{name.removeprefix('edgecore_')}" in self._target.hooks

    def log(self) -> str:
        """The end of what the plugin wrote to standard output and standard error; empty where it runs in this
        process."""
        return self._target.log()

    def probe(self, *, deadline: float | None = None) -> Probe:
        answer: Probe = self._call("edgecore_probe", deadline)
        return answer

    def convert(
        self,
        *,
        source: Path,
        out: Path,
        format: str,
        precision: str,
        options: Mapping[str, Value] | None = None,
        limits: ConvertLimits | None = None,
        deadline: float | None = None,
        on_progress: Progress | None = None,
    ) -> Made:
        answer: Made = self._call(
            "edgecore_convert", deadline, source=Path(source), out=Path(out), format=format, precision=precision,
            options=dict(options or {}), limits=limits or ConvertLimits(), progress=on_progress or no_progress,
        )  # fmt: skip
        return answer

    def quantize(
        self,
        *,
        artifact: Artifact,
        out: Path,
        precision: str,
        calibration: Path | None = None,
        options: Mapping[str, Value] | None = None,
        deadline: float | None = None,
        on_progress: Progress | None = None,
    ) -> Made:
        answer: Made = self._call(
            "edgecore_quantize", deadline, artifact=artifact, out=Path(out), precision=precision,
            calibration=calibration, options=dict(options or {}), progress=on_progress or no_progress,
        )  # fmt: skip
        return answer

    def compile(
        self,
        *,
        artifact: Artifact,
        out: Path,
        profile: Mapping[str, Any],
        device: str,
        options: Mapping[str, Value] | None = None,
        deadline: float | None = None,
        on_progress: Progress | None = None,
    ) -> Made:
        answer: Made = self._call(
            "edgecore_compile", deadline, artifact=artifact, out=Path(out), profile=profile, device=device,
            options=dict(options or {}), progress=on_progress or no_progress,
        )  # fmt: skip
        return answer

    def open(
        self,
        artifact: Artifact,
        *,
        device: str,
        context_length: int | None = None,
        threads: int | None = None,
        options: Mapping[str, Value] | None = None,
        deadline: float | None = None,
        owned: bool = False,
    ) -> TextSession | TensorSession:
        """A session. `deadline` holds for opening it and for every later answer and piece (`session.deadline`).
        `owned`: closing it closes this backend too. Raises `BadRequest` for a context of less than one token."""
        _check_context(context_length)
        answer = self._call(
            "edgecore_run", deadline, artifact=artifact, device=device, context_length=context_length,
            threads=threads, options=dict(options or {}),
        )  # fmt: skip
        session = self._target.session(answer, self.close if owned else None)
        if isinstance(session, RemoteTextSession | RemoteTensorSession):
            session.deadline = deadline
        return session

    def benchmark(
        self,
        *,
        artifact: Artifact,
        device: str,
        workload: Workload,
        options: Mapping[str, Value] | None = None,
        deadline: float | None = None,
        on_progress: Progress | None = None,
    ) -> Samples:
        """By the backend's own loop, or by the contract's over a session, both where the plugin runs."""
        _check_context(workload.context_length)
        answer: Samples = self._call(
            "edgecore_benchmark", deadline, artifact=artifact, device=device, workload=workload,
            options=dict(options or {}), progress=on_progress or no_progress,
        )  # fmt: skip
        return answer

    def weights(self, artifact: Artifact, *, deadline: float | None = None) -> Mapping[str, Any] | None:
        """Dequantized weights by canonical name, each read when it is asked for; None where the backend gives none, or
        none of such an artifact (`CannotDo`)."""
        if not self.has_hook("weights"):
            return None
        try:
            facts = self._call("edgecore_weights", deadline, artifact=artifact)
        except CannotDo:
            return None
        answer: Mapping[str, Any] = self._target.mapping(facts)
        return answer

    def close(self) -> None:
        """End the worker. Closing twice is fine."""
        self._target.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, hook: str, deadline: float | None, **arguments: Any) -> Any:
        if hook not in self._target.hooks and hook != "edgecore_benchmark":
            verb = hook.removeprefix("edgecore_")
            able = ", ".join(sorted(h.removeprefix("edgecore_") for h in self._target.hooks))
            raise CannotDo(f"backend {self.entry.name!r} cannot {verb}", supported=able)
        return wrapping.call(hook, self._target, deadline, arguments)


def _check_context(length: int | None) -> None:
    """Raises `BadRequest`. Asked here, so that no backend can take 0 for "choose yourself"."""
    if length is not None and length < 1:
        raise BadRequest(f"a context of {length} tokens", supported="at least 1; None lets the backend choose")


class _InWorker:
    """Hooks answered by a worker process."""

    def __init__(self, entry: Entry, hooks: str, python: str, foreign: bool, memory_limit: int | None) -> None:
        try:
            transport = LocalProcess(python, foreign=foreign)
        except OSError as error:
            raise BackendUnavailable(
                f"the interpreter of {entry.name!r} cannot be started: {python}: {error.strerror}",
                hint=f"edgecore plugin install {entry.name}" if foreign else "",
            ) from None
        self._channel = Channel(transport, entry.name)
        if memory_limit is not None:
            guard_memory(transport.pid, memory_limit, self._channel.ended, _Excess(self._channel, memory_limit))
        self.pid = transport.pid
        hello = {
            "protocol": PROTOCOL,
            "backend": entry.name,
            "hooks": hooks,
            "search_path": list(entry.search_path),
        }
        try:
            ready = self._channel.call("hello", deadline=START_SECONDS, keywords=hello)
        except BaseException:
            self.close()
            raise
        self.hooks = frozenset(ready["hooks"])
        self.versions = ready["versions"]

    def invoke(self, hook: str, arguments: Mapping[str, Any], deadline: float | None) -> Any:
        keywords = dict(arguments)
        progress = keywords.pop("progress", None)
        return self._channel.call(hook, deadline=deadline, progress=progress, keywords=keywords)

    def session(self, facts: Any, on_close: Any) -> TextSession | TensorSession:
        kind = RemoteTextSession if facts["kind"] == "text" else RemoteTensorSession
        return kind(self._channel, facts, on_close)

    def mapping(self, facts: Any) -> Mapping[str, Any]:
        return RemoteMapping(self._channel, facts)

    def log(self) -> str:
        return self._channel.transport.tail() if self._channel.close.alive else ""

    def close(self) -> None:
        self._channel.close()


class _Excess:
    """Ends a worker that grew too large. Holds the channel weakly: watching must not keep a forgotten worker alive."""

    def __init__(self, channel: Channel, limit: int) -> None:
        self._channel, self._limit = weakref.ref(channel), limit

    def __call__(self, used: int) -> None:
        channel = self._channel()
        if channel is not None:
            held, limit = (f"{n / 2**20:,.0f} MiB" for n in (used, self._limit))
            channel.end(
                DoesNotFit(
                    f"the worker held {held}, more than its limit of {limit} of memory",
                    hint="a higher memory limit, a smaller precision or a shorter context",
                )
            )


class _InProcess:
    """Hooks answered in this process, sessions as the plugin made them."""

    def __init__(self, host: Host) -> None:
        from edgecore import __version__

        self._host = host
        self.hooks = host.hooks
        self.pid = os.getpid()
        self.versions = {"edgecore": __version__, "python": sys.version.partition(" ")[0]}
        self._open: list[TextSession | TensorSession] = []

    def invoke(self, hook: str, arguments: Mapping[str, Any], deadline: float | None) -> Any:
        return self._host.call(hook, arguments)

    def session(self, opened: Any, on_close: Any) -> TextSession | TensorSession:
        session: TextSession | TensorSession = opened
        self._open.append(session)
        return session

    def mapping(self, weights: Any) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = weights
        return answer

    def log(self) -> str:
        return ""

    def close(self) -> None:
        while self._open:
            with suppress(Exception):
                self._open.pop().close()
