"""Runs inside a fresh interpreter of the plugin's own environment, as text: it loads the plugin step by step, calls one
hook, and writes down what was imported and what else happened. It may use the standard library and edgecore alone.

Own code because nothing else sees an interpreter from its first import on: an audit hook (PEP 578) is told of every
file that is opened and every connection that is tried. What native code does by itself it is not told; the folders
around the process are compared for that.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
           "os.utime")  # fmt: skip
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
MOST = 500


class Watch:
    """What the audit hook saw, by stage."""

    def __init__(self) -> None:
        self.stage = ""
        self.events: list[list[str]] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.stage or len(self.events) >= MOST:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes | os.PathLike) and isinstance(flags, int) and flags & WRITES:
                self.events.append([self.stage, "write", os.path.abspath(os.fsdecode(path))])
        elif event in CHANGES:
            self.events.append([self.stage, event, os.path.abspath(os.fsdecode(arguments[0]))])
        elif event in NETWORK:
            self.events.append([self.stage, "network", f"{event} {arguments[-1]!r}"[:300]])
            raise OSError(errno.ENETUNREACH, "the conformance suite lets nothing out")
        elif event in PROCESSES:
            self.events.append([self.stage, "process", str(arguments[0])[:300]])


def main() -> None:
    task = json.loads(sys.argv[1])
    if task["path"]:
        sys.path[:] = task["path"]
    for folder in reversed(task["search_path"]):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    watch = Watch()
    sys.addaudithook(watch)
    found: dict[str, Any] = {"stages": {}, "error": {}}
    known = set(sys.modules)

    def stage(name: str, work: Any) -> Any:
        nonlocal known
        began, cpu = time.perf_counter(), time.process_time()
        watch.stage = name
        try:
            return work()
        finally:
            watch.stage = ""
            found["stages"][name] = {
                "seconds": time.perf_counter() - began,
                "cpu": time.process_time() - cpu,
                "modules": sorted({m.partition(".")[0] for m in set(sys.modules) - known}),
                "libraries": libraries(),
            }
            known = set(sys.modules)

    try:
        stage("package", lambda: __import__(task["package"]))
        stage("core", load_core)
        before = around()
        host = stage("hooks", lambda: load_hooks(task))
        found["hooks"] = sorted(host.hooks)
        if task["call"]:
            stage("call", lambda: found.update(call(host, task["call"])))
            found["changed"] = sorted(name for name, was in around().items() if was != before.get(name, was))
    except BaseException as error:
        words = {k: str(getattr(error, k, "")) for k in ("what", "supported")}
        found["error"] = {"error": type(error).__name__, **words, "what": words["what"] or str(error)}
    found["events"] = watch.events
    found["sockets"] = sockets()
    found["children"] = children()
    found["packages"] = packages({m for s in found["stages"].values() for m in s["modules"]}, task)
    with open(task["answer"], "w", encoding="utf-8") as file:
        json.dump(found, file)


def load_core() -> None:
    """What every worker loads, whatever the plugin."""
    import edgecore.checkpoint
    import edgecore.contract
    import edgecore.workers.arena
    import edgecore.workers.host
    import edgecore.workers.serve
    import edgecore.workers.wire  # noqa: F401


def load_hooks(task: dict[str, Any]) -> Any:
    from edgecore.workers.host import Host

    return Host(task["backend"], task["hooks"], task["search_path"])


def call(host: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Call one hook; answers what it answered and every report of its progress."""
    from dataclasses import asdict
    from pathlib import Path

    from edgecore.contract import Artifact, Cancelled, ConvertLimits, PayloadFile

    reports: list[list[Any]] = []

    def progress(done: int, total: int, stage: str = "") -> None:
        reports.append([round(time.perf_counter(), 4), int(done), int(total), stage])
        if asked.get("cancel_at") and len(reports) >= asked["cancel_at"]:
            raise Cancelled("enough")

    given = {k: Path(v) if k in ("source", "out", "calibration") and v else v for k, v in asked["arguments"].items()}
    if "artifact" in given:
        facts: dict[str, Any] = dict(asked["arguments"]["artifact"])
        files = tuple(PayloadFile(**f) for f in facts.pop("files"))
        given["artifact"] = Artifact(**{**facts, "path": Path(facts["path"]), "files": files})
    if asked["hook"] == "edgecore_convert":
        limits = dict(asked["arguments"]["limits"])
        shapes = {name: tuple(shape) for name, shape in limits.pop("shapes").items()}
        given["limits"] = ConvertLimits(**limits, shapes=shapes)
    if asked["hook"] in ("edgecore_convert", "edgecore_quantize"):
        given["progress"] = progress
    error: dict[str, str] = {}
    answer: Any = None
    try:
        made = host.call(asked["hook"], given)
        answer = used(made, asked) if asked["hook"] == "edgecore_run" else asdict(made)
    except Exception as raised:
        error = {"error": type(raised).__name__, "what": str(getattr(raised, "what", raised))}
    found = {"answer": json.loads(json.dumps(answer, default=str)), "call_error": error, "reports": reports}
    return found | {"installed": installed((answer or {}).get("versions", {}))}


def installed(names: Any) -> dict[str, str]:
    """Versions of those names that are distributions here."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        try:
            found[str(name)] = version(str(name))
        except (PackageNotFoundError, ValueError):
            continue
    return found


def used(session: Any, asked: dict[str, Any]) -> dict[str, bool]:
    """What holds of a session that is used in this very process, where nothing is copied on its way."""
    import numpy as np

    if "tokens" in asked:
        tokens = list(asked["tokens"])
        context = session.context()
        answers = [context.prefill(tokens), context.step(tokens[0]), context.step(tokens[1])]
        copies = [np.array(answer) for answer in answers]
        context.reset()
        context.prefill(tokens[:2])
        list(session.generate(tokens, max_tokens=3))
        fed_as_before = tokens == asked["tokens"]
    else:
        with np.load(asked["feeds"]) as stored:
            feeds = {name: stored[name] for name in stored.files}
        given = {name: feed.copy() for name, feed in feeds.items()}
        answers = list(session(feeds).values())
        copies = [np.array(answer) for answer in answers]
        session({name: feed + 1 for name, feed in feeds.items()})
        fed_as_before = all(np.array_equal(feeds[name], given[name]) for name in feeds)
        for feed in feeds.values():
            feed += 1

    def same() -> bool:
        return all(np.array_equal(answer, copy) for answer, copy in zip(answers, copies, strict=True))

    kept = same()
    session.close()
    return {"feeds are as before": fed_as_before, "answers are kept": kept, "answers are kept after close": same()}


def around() -> dict[str, str]:
    """What a process has once and everybody in it shares."""
    import locale
    import signal

    import numpy as np

    umask = os.umask(0)
    os.umask(umask)
    found = {
        "working directory": os.getcwd(), "umask": str(umask), "locale": locale.setlocale(locale.LC_ALL),
        "numpy's errors": str(np.geterr()), "hooks of sys": str((sys.excepthook, sys.stdout, sys.stderr)),
    }  # fmt: skip
    for name in ("SIGINT", "SIGTERM", "SIGCHLD", "SIGALRM", "SIGPIPE"):
        if hasattr(signal, name):
            found[f"signal {name}"] = str(signal.getsignal(getattr(signal, name)))
    return found | {f"variable {name}": value for name, value in os.environ.items()}


def libraries() -> int:
    """Shared libraries that are mapped now, outside the standard library's own; -1 where the system does not tell."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            files = {line.split(None, 5)[5].strip() for line in maps if ".so" in line}
    except OSError:
        return -1
    return len({f for f in files if "/lib-dynload/" not in f})


def sockets() -> int:
    """Open sockets of this process; -1 where the system does not tell."""
    try:
        handles = os.listdir("/proc/self/fd")
    except OSError:
        return -1
    count = 0
    for handle in handles:
        try:
            count += os.readlink(f"/proc/self/fd/{handle}").startswith("socket:")
        except OSError:
            continue
    return count


def children() -> int:
    """Processes that this one started and that still run."""
    import psutil

    alive = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    for process in alive:
        process.kill()
    return len(alive)


def packages(modules: set[str], task: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Who brought each top-level module: its distribution, whether that holds native code, and what it is to us."""
    from importlib.metadata import distribution, packages_distributions

    owners = packages_distributions()
    core = closure("edgecore")
    facts: dict[str, dict[str, Any]] = {}
    for name in modules:
        if name in sys.stdlib_module_names or name.startswith("_sysconfigdata") or name == "edgecore":
            continue
        owner = sorted(owners.get(name, ()))
        file = str(getattr(sys.modules.get(name), "__file__", "") or "")
        native = file.endswith((".so", ".pyd"))
        for one in owner:
            native = native or any(
                str(f).endswith((".so", ".pyd", ".dylib", ".dll")) for f in distribution(one).files or ()
            )
        facts[name] = {
            "distribution": ", ".join(owner),
            "native": native,
            "core": any(normal(one) in core for one in owner),
            "own": name == task["package"] or name == task["hooks"].partition(".")[0],
        }
    return facts


def closure(name: str) -> set[str]:
    """Distributions that this one needs, itself included, by normalized name."""
    import re
    from importlib.metadata import PackageNotFoundError, requires

    found: set[str] = set()
    left = [name]
    while left:
        one = normal(left.pop())
        if one in found:
            continue
        found.add(one)
        try:
            needed = requires(one) or []
        except PackageNotFoundError:
            continue
        for requirement in needed:
            match = re.match(r"[A-Za-z0-9._-]+", requirement)
            if match and "extra ==" not in requirement:
                left.append(match.group())
    return found


def normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    main()
