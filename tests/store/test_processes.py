"""The store among processes that wait, are killed, and run out of disk. The builders here are real processes."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecore.contract.errors import BadRequest
from edgecore.store import Store

from support.storing import publish

BUILDER = """
import os, sys, time
from pathlib import Path
from edgecore.store import Store
from support.storing import described

root, identity, pause_at = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def reach(moment):
    print(moment, flush=True)
    if moment == pause_at:
        time.sleep(60)

import edgecore.disk, edgecore.store.store as module
for name in ("seal", "write_whole", "sync_folder"):
    real = getattr(edgecore.disk, name)
    def wrapped(*arguments, real=real, name=name):
        reach("before " + name)
        real(*arguments)
        reach("after " + name)
    setattr(edgecore.disk, name, wrapped)

with Store(root).build(identity, on_wait=lambda: print("waiting", flush=True)) as staging:
    if staging.cached:
        reach("cached")
        sys.exit()
    reach("locked")
    with (staging.path / "model.bin").open("wb") as file:
        for _ in range(64):
            file.write(bytes(65536))
        file.flush()
        reach("writing")
        file.write(b"end")
    reach("written")
    staging.publish(described(identity))
    reach("published")
"""
MOMENTS = ("locked", "writing", "written", "before seal", "after seal", "before write_whole", "after write_whole",
           "before sync_folder", "after sync_folder", "published")  # fmt: skip


def builder(root: Path, identity: str, pause_at: str = "") -> subprocess.Popen[str]:
    return run(BUILDER, str(root), identity, pause_at)


def run(code: str, *arguments: str, before: Callable[[], object] | None = None) -> subprocess.Popen[str]:
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests.parent), str(tests), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        preexec_fn=before,
    )


def read_until(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for printed in process.stdout:
        if printed.strip() == line:
            return
    pytest.fail(f"the builder ended before {line!r}: {process.communicate()}")


def test_of_two_processes_one_builds_and_the_other_gets_it(tmp_path: Path) -> None:
    first = builder(tmp_path, "a-1", pause_at="writing")
    read_until(first, "writing")
    second = builder(tmp_path, "a-1")
    read_until(second, "waiting")
    first.kill()
    read_until(second, "published")
    third = builder(tmp_path, "a-1")
    assert third.communicate(timeout=60)[0].split() == ["cached"]
    second.communicate(timeout=60)
    first.communicate(timeout=60)


def test_many_builders_at_once_build_one_artifact_once(tmp_path: Path) -> None:
    builders = [builder(tmp_path, "a-1") for _ in range(4)]
    printed = [b.communicate(timeout=120) for b in builders]
    assert [b.returncode for b in builders] == [0] * 4, printed
    assert sorted("published" in out for out, _ in printed) == [False, False, False, True]
    assert Store(tmp_path).verify("a-1") == []


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_builder_killed_at_any_moment_leaves_a_whole_artifact_or_none(tmp_path: Path, moment: str) -> None:
    process = builder(tmp_path, "a-1", pause_at=moment)
    read_until(process, moment)
    process.kill()
    process.communicate(timeout=60)
    store = Store(tmp_path)
    # "after sync_folder" is first reached within write_whole of artifact.json: the rename is still to come.
    assert [a.id for a in store.list()] == (["a-1"] if moment == "published" else [])
    assert store.unreadable() == {}
    if moment == "published":
        assert store.verify("a-1") == []
    else:
        assert publish(store, "a-1").model.read_bytes() == b"weights"
    publish(store, "b-1")
    assert [p.name for p in (tmp_path / ".staging").iterdir()] == []


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.005, 0.01, 0.02, 0.04])
def test_a_builder_killed_at_a_random_time_leaves_a_whole_artifact_or_none(tmp_path: Path, delay: float) -> None:
    process = builder(tmp_path, "a-1")
    read_until(process, "locked")
    time.sleep(delay)
    process.kill()
    process.communicate(timeout=60)
    store = Store(tmp_path)
    assert store.unreadable() == {}
    for artifact in store.list():
        assert store.verify(artifact.id) == []
    publish(store, "b-1")
    assert store.verify("b-1") == []


def test_what_another_process_is_building_is_not_swept(tmp_path: Path) -> None:
    process = builder(tmp_path, "a-1", pause_at="writing")
    read_until(process, "writing")
    publish(Store(tmp_path), "b-1")
    assert [p.name.split("~")[0] for p in (tmp_path / ".staging").iterdir()] == ["a-1"]
    process.kill()
    process.communicate(timeout=60)
    publish(Store(tmp_path), "c-1")
    assert list((tmp_path / ".staging").iterdir()) == []


EVIDENCE = """
import sys
from pathlib import Path
from edgecore.store import Store
store = Store(Path(sys.argv[1]))
artifact = store.find("a-1")
print("ready", flush=True)
for n in range(40):
    store.add_evidence(artifact, {"kind": "quality", "who": sys.argv[2], "n": n})
    assert all(r["kind"] == "quality" for r in store.evidence(artifact))
"""


def test_two_processes_write_evidence_at_once_and_none_is_lost(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = publish(store, "a-1")
    writers = [run(EVIDENCE, str(tmp_path), who) for who in ("one", "two")]
    outcomes = [w.communicate(timeout=120) for w in writers]
    assert [w.returncode for w in writers] == [0, 0], outcomes
    records = {(r["who"], r["n"]) for r in store.evidence(artifact)}
    assert records == {(who, n) for who in ("one", "two") for n in range(40)}


FULL = """
import resource, sys
from pathlib import Path
from edgecore.contract.errors import DoesNotFit
from edgecore.store import Store
from support.storing import described, publish
store = Store(Path(sys.argv[1]))
what, limit = sys.argv[2], int(sys.argv[3])
artifact = store.get("a-1")
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    if what == "build":
        publish(store, "b-1", {"model.bin": bytes(100_000)})
    elif what == "export":
        store.export(artifact, Path(sys.argv[4]))
    else:
        store.add_evidence(artifact, {"text": "x" * 100_000})
except DoesNotFit as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a file-size limit, which Windows lacks")
@pytest.mark.parametrize(
    ("what", "limit"), [("build", 50_000), ("build", 100), ("export", 50_000), ("evidence", 50_000)]
)
def test_a_full_disk_is_an_error_that_says_so_and_leaves_nothing(tmp_path: Path, what: str, limit: int) -> None:
    store = Store(tmp_path / "store")
    artifact = publish(store, "a-1", {"model.bin": bytes(100_000)})
    process = run(FULL, str(store.root), what, str(limit), str(tmp_path / "out"))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 7, err
    assert "did not fit on the disk" in out
    assert "free there now" in out
    assert "edgecore cache" in out
    assert [a.id for a in store.list()] == ["a-1"]
    assert list((store.root / ".staging").iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store"]
    assert list((artifact.path / "evidence").iterdir()) == []
    assert store.verify("a-1") == []


EXPORTER = """
import sys, time
from pathlib import Path
import edgecore.disk
from edgecore.store import Store
def slow(path):
    print("copied", flush=True)
    time.sleep(60)
store = Store(Path(sys.argv[1]))
artifact = store.find("a-1")
edgecore.disk.seal = slow
store.export(artifact, Path(sys.argv[2]))
"""


def test_a_killed_export_leaves_nothing_under_its_name_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    artifact = publish(store, "a-1")
    process = run(EXPORTER, str(store.root), str(tmp_path / "out"))
    read_until(process, "copied")
    process.kill()
    process.communicate(timeout=60)
    assert not (tmp_path / "out").exists()
    store.export(artifact, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "store"]


READ_ONLY = """
import sys
from pathlib import Path
from edgecore.contract.errors import BadRequest
from edgecore.store import Store
from support.storing import publish
store = Store(Path(sys.argv[1]))
artifact = store.find("a-1")
assert [a.id for a in store.list()] == ["a-1"]
assert store.verify("a-1") == []
with store.build("a-1") as staging:
    assert staging.cached == artifact
for write in (lambda: publish(store, "b-1"), lambda: store.remove("a-1"), lambda: store.add_evidence(artifact, {})):
    try:
        write()
    except BadRequest as error:
        print(error)
    else:
        sys.exit("it was written")
"""


def forgo_roots_privilege() -> None:
    """Root writes where modes forbid it; a process without this capability obeys them (capabilities(7))."""
    pr_capbset_drop, cap_dac_override = 24, 1
    ctypes.CDLL(None).prctl(pr_capbset_drop, cap_dac_override, 0, 0, 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux to forgo root's privilege")
def test_a_read_only_store_reads_and_says_that_it_cannot_be_written(tmp_path: Path) -> None:
    root = tmp_path / "store"
    publish(Store(root), "a-1")
    folders = [root, *(p for p in root.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        process = run(READ_ONLY, str(root), before=forgo_roots_privilege)
        out, err = process.communicate(timeout=60)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert process.returncode == 0, err
    assert out.count("cannot be written") == 3


def test_a_store_that_cannot_be_a_folder_is_a_bad_request(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "store")
    assert store.list() == []
    with pytest.raises(BadRequest, match="cannot be written: Not a directory"):
        publish(store, "a-1")
