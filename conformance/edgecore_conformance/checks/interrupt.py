"""Ctrl-C at `edgecore run`, as a user presses it. Part of group *robustness*."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgecore.contract.artifacts import Artifact
from edgecore.contract.manifest import Manifest
from edgecore.store import Store
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, Check, check
from edgecore_conformance.checks.upsets import IN_TIME
from edgecore_conformance.known import TRAINED, Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.outcomes import Outcome


@check
class Interrupt(Check):
    """robustness.interrupt: Ctrl-C ends `edgecore run` in time, with 130, and leaves no worker.

    The artifact is put into a store of its own, `edgecore run` generates from it, and after its first words the
    process, and no other, gets SIGINT. It must end within five seconds with status 130, and every process that it
    had started must be gone. A failure is a terminal that does not come back, or a runtime that goes on computing in
    the background.
    """

    def applies(self, manifest: Manifest) -> bool:
        return bool(manifest.formats_of("text"))

    def proves(self, manifest: Manifest, cell: Cell) -> Mapping[str, str]:
        return {"task": "text"}

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        if os.name != "posix":
            return Observation({"skipped": "signals of this kind are POSIX's"})
        with bench.session(bench.artifact(TRAINED), threads=1):
            pass  # what cannot be opened here cannot be interrupted
        home, identity = stored(bench, bench.artifact(TRAINED))
        tries: list[dict[str, Any]] = []
        while len(tries) < 3 and (not tries or tries[-1]["finished"]):  # an answer may end before it is interrupted
            tries.append(_interrupted(bench, home, identity, len(tries)))
        return Observation({"tried": tries})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        if "skipped" in seen.facts:
            verdict.claimed = Outcome.NOT_APPLICABLE
            return
        last = seen.facts["tried"][-1]
        if last["finished"]:
            verdict.claimed = Outcome.UNAVAILABLE
            return
        verdict.expect(
            last["status"] == 130, f"it ended with status {last['status']}, where 130 is due: {last['said'][-300:]}"
        )
        verdict.figure(
            "from SIGINT to the end", last["seconds"], IN_TIME, "<=", "s", "2 s of grace, and a busy machine"
        )
        verdict.expect(last["children"] > 0, "there was no worker")
        verdict.expect(last["orphans"] == 0, f"{last['orphans']} processes that it had started live on")


def stored(bench: Bench, artifact: Artifact) -> tuple[Path, str]:
    """The artifact in a new store, as `edgecore build` leaves it; answers EDGECORE_HOME and its id."""
    home = bench.folder("home")
    identity = f"{artifact.backend}-{artifact.precision}-conformance"
    with Store(home / "artifacts").build(identity) as staging:
        for file in artifact.files:
            target = staging.path / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.path / file.path, target)
        staging.publish(replace(artifact, id=identity, path=staging.path))
    return home, identity


def _heed_interrupts() -> None:
    """In the child, before it begins: what runs in the background of a shell hands down that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupted(bench: Bench, home: Path, identity: str, number: int) -> dict[str, Any]:
    import psutil

    origin = bench.entry.origin
    name = bench.entry.name if origin != "path" else str(Path(bench.entry.location).parent)
    prompt = bench.known.text(f"interrupt {number}", 64)
    room = bench.artifact(TRAINED).context_length - len(bench.known.tokenizer(TRAINED).encode(prompt)) - 4
    command = [
        sys.executable, "-m", "edgecore", "run", identity, "--backend", name, "--device", bench.device, "-p", prompt,
        "-n", str(room), "--temp", "1.5", "--seed", str(number),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env={**os.environ, "EDGECORE_HOME": str(home)}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True, cwd=bench.work, preexec_fn=_heed_interrupts,
    )  # fmt: skip
    children: list[Any] = []
    try:
        assert process.stdout
        said = process.stdout.read(1)
        with suppress(psutil.Error):
            children = psutil.Process(process.pid).children(recursive=True)
        begun = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
        seconds = time.monotonic() - begun
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    _, alive = psutil.wait_procs(children, timeout=3)
    for orphan in alive:
        with suppress(psutil.Error):
            orphan.kill()
    return {
        "status": process.returncode, "seconds": seconds, "said": (said + rest).decode("utf-8", "replace")[-2000:],
        "finished": process.returncode == 0, "children": len(children), "orphans": len(alive),
    }  # fmt: skip
