"""Faults under stress: what stays behind, what dies, what does not end."""

from __future__ import annotations

from edgecore_conformance.outcomes import Outcome
from mutants.mutant import Mutant

HEAD = "from edgecore_reference.text import OracleSession\n"

MUTANTS = (
    Mutant(
        "open_leaks_memory",
        "every open keeps 24 MB that closing does not give back",
        ("robustness.rounds",),
        HEAD
        + """
held = []

@instead(OracleSession, "__init__")
def begin(was, self, model, **how):
    held.append(np.ones(24 << 20, np.uint8))
    was(self, model, **how)
""",
    ),
    Mutant(
        "open_leaks_files",
        "every open leaves files open",
        ("robustness.rounds",),
        HEAD
        + """
held = []

@instead(OracleSession, "__init__")
def begin(was, self, model, **how):
    held.extend(open(__file__) for _ in range(20))
    was(self, model, **how)
""",
    ),
    Mutant(
        "open_leaks_threads",
        "every open leaves a thread running",
        ("robustness.rounds",),
        HEAD
        + """
import threading

@instead(OracleSession, "__init__")
def begin(was, self, model, **how):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    was(self, model, **how)
""",
    ),
    Mutant(
        "open_leaves_temporary_files",
        "every open unpacks into a folder for temporary files, and closing leaves it there",
        ("robustness.rounds",),
        HEAD
        + """
import tempfile

@instead(OracleSession, "__init__")
def begin(was, self, model, **how):
    (Path(tempfile.mkdtemp(prefix="opened-")) / "weights").write_bytes(bytes(1 << 16))
    was(self, model, **how)
""",
    ),
    Mutant(
        "second_open_fails",
        "after a close nothing can be opened any more",
        ("robustness.rounds",),
        HEAD
        + """
closed = []

@instead(OracleSession, "close")
def close(was, self):
    closed.append(True)
    was(self)

@instead(OracleSession, "__init__")
def begin(was, self, model, **how):
    if closed:
        raise RuntimeError("the runtime was shut down")
    was(self, model, **how)
""",
    ),
    Mutant(
        "fifth_open_dies",
        "the fifth open ends the process",
        ("robustness.rounds",),
        HEAD
        + """
import os

opened = []

@instead(OracleSession, "__init__")
def begin(was, self, model, **how):
    opened.append(True)
    if len(opened) == 5:
        os.abort()
    was(self, model, **how)
""",
        outcomes=(Outcome.CRASHED, Outcome.FAILED),
    ),
    Mutant(
        "closing_hangs",
        "closing a session waits for a thread that does not end",
        ("robustness.rounds",),
        HEAD
        + """
import threading

@instead(OracleSession, "close")
def close(was, self):
    threading.Event().wait()
""",
        outcomes=(Outcome.TIMEOUT, Outcome.FAILED),
        seconds=5,
    ),
    Mutant(
        "open_of_a_corrupt_file_dies",
        "an artifact that is damaged ends the process",
        ("robustness.misuse",),
        """
import os

@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    try:
        return truthful.edgecore_run(artifact, device, context_length, threads, options)
    except CorruptModel:
        os.abort()
""",
        outcomes=(Outcome.CRASHED, Outcome.FAILED),
    ),
    Mutant(
        "process_outlives_its_worker",
        "a helper process in a session of its own goes on when the worker has ended",
        ("robustness.interrupt",),
        HEAD
        + """
import subprocess, sys

@instead(OracleSession, "__init__")
def begin(was, self, model, **how):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    was(self, model, **how)
""",
    ),
)
