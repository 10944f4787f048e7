"""`hf:` against a hub on this machine that speaks the few calls it needs: pinned, chosen, resumed, checked."""

from __future__ import annotations

import builtins
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgecore import paths
from edgecore.contract.errors import (
    BackendUnavailable,
    BadRequest,
    Cancelled,
    CorruptModel,
    EdgecoreError,
    ModelNotFound,
    Timeout,
    UnsupportedModel,
)
from edgecore.sources import hub, resolve
from edgecore.sources.hub import Wanted, choose, parse

from support.models import write_gguf, write_onnx
from support.serving import Site
from support.tiny import tiny_llama

pytest.importorskip("huggingface_hub", reason="needs the optional extra: pip install 'edgecore[hub]'")

COMMIT, NEWER = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def hub_is_the_site(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", site.address)


def offer(site: Site, files: Mapping[str, bytes], *, repo: str = "org/name", commit: str = COMMIT, **lies: str) -> None:
    """A repository whose branch main is at `commit`. Large files are LFS files, with a SHA-256; small ones are git's.
    `lies` gives the hub a wrong digest for a file, by its name without a suffix."""
    siblings = []
    for name, data in files.items():
        site.files[f"/{repo}/resolve/{commit}/{name}"] = data
        sibling: dict[str, Any] = {"rfilename": name, "size": len(data)}
        if len(data) > 10_000:
            digest = lies.get(name.partition(".")[0], hashlib.sha256(data).hexdigest())
            sibling |= {"lfs": {"sha256": digest, "size": len(data), "pointerSize": 130}, "blobId": "0" * 40}
        else:
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            sibling["blobId"] = lies.get(name.partition(".")[0], blob)
        siblings.append(sibling)
    answer = {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "tags": ["license:apache-2.0"]}
    for path in ("", "/revision/main", f"/revision/{commit}"):
        site.files[f"/api/models/{repo}{path}"] = json.dumps(answer).encode()
        site.types[f"/api/models/{repo}{path}"] = "application/json"


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_folder_comes_with_what_is_read_and_nothing_that_runs(site: Site, tmp_path: Path) -> None:
    wanted = bytes_of(tiny_llama(tmp_path / "tiny", shards=2))
    offer(
        site,
        {
            **wanted,
            "README.md": b"# card",
            "modeling_custom.py": b"raise SystemExit",
            "pytorch_model.bin": bytes(20_000),
            "consolidated.safetensors": bytes(20_000),
            "onnx/model.onnx": bytes(20_000),
        },
    )
    source = resolve("hf:org/name")
    assert source.kind == "huggingface"
    assert bytes_of(source.path) == wanted
    assert source.digest == resolve(str(tmp_path / "tiny")).digest
    assert source.origin == {
        "from": "hub",
        "repository": "org/name",
        "commit": COMMIT,
        "licence": "apache-2.0",
    }


def test_a_model_may_be_refused_before_its_weights_are_fetched(site: Site, tmp_path: Path) -> None:
    offer(site, bytes_of(tiny_llama(tmp_path / "tiny", shards=2)))
    seen: list[str] = []

    def look(folder: Path) -> None:
        seen.extend(sorted(p.name for p in folder.iterdir()))
        raise UnsupportedModel("not this one")

    with pytest.raises(UnsupportedModel, match="not this one"):
        resolve("hf:org/name", look=look)
    assert "config.json" in seen
    assert "tokenizer.json" in seen
    assert not [name for name in seen if name.endswith(".safetensors")]
    assert not list(paths.sources().rglob("*.safetensors"))


def test_the_second_time_needs_no_network_and_stays_at_its_commit(site: Site, model: bytes, tmp_path: Path) -> None:
    offer(site, {"tiny.gguf": model})
    source = resolve("hf:org/name")
    requests = len(site.asked)
    newer = write_gguf(tmp_path / "newer.gguf", seed=1).read_bytes()
    offer(site, {"tiny.gguf": newer}, commit=NEWER)
    assert resolve("hf:org/name", offline=True) == source
    assert resolve("hf:org/name").path.read_bytes() == model
    assert len(site.asked) == requests
    assert resolve("hf:org/name@main").path.read_bytes() == newer
    assert resolve(f"hf:org/name@{COMMIT}").path.read_bytes() == model


def test_what_was_not_fetched_needs_the_network() -> None:
    with pytest.raises(ModelNotFound, match="network may not be used"):
        resolve("hf:org/name", offline=True)


def test_a_quantization_picks_its_file(site: Site, model: bytes, tmp_path: Path) -> None:
    other = write_gguf(tmp_path / "other.gguf", seed=1).read_bytes()
    offer(site, {"tiny-Q4_K_M.gguf": model, "tiny-Q8_0.gguf": other, "README.md": b"# card"})
    source = resolve("hf:org/name:q4_k_m")
    assert source.path.read_bytes() == model
    assert source.origin["file"] == "tiny-Q4_K_M.gguf"
    assert source.known_digest == hashlib.sha256(model).hexdigest()
    assert resolve("hf:org/name/tiny-Q8_0.gguf").path.read_bytes() == other
    with pytest.raises(BadRequest, match="has 2 files that this could mean") as error:
        resolve("hf:org/name")
    assert error.value.supported == "tiny-Q4_K_M.gguf, tiny-Q8_0.gguf"
    with pytest.raises(ModelNotFound, match="no GGUF file named Q2_K") as missing:
        resolve("hf:org/name:Q2_K")
    assert missing.value.supported == "tiny-Q4_K_M.gguf, tiny-Q8_0.gguf"


def test_an_onnx_file_brings_the_weights_beside_it(site: Site, tmp_path: Path) -> None:
    write_onnx(tmp_path / "model.onnx", external=True)
    offer(site, {f"onnx/{name}": data for name, data in bytes_of(tmp_path).items()})
    source = resolve("hf:org/name/onnx/model.onnx")
    assert source.kind == "onnx"
    assert (source.path.parent / "w.data").is_file()


def test_a_connection_cut_half_way_is_resumed_with_the_rest_only(site: Site, model: bytes) -> None:
    offer(site, {"tiny.gguf": model})
    address = f"/org/name/resolve/{COMMIT}/tiny.gguf"
    site.cuts[address] = [100_000]
    assert resolve("hf:org/name").path.read_bytes() == model
    assert [a.range for a in site.of(address)] == [None, "bytes=100000-"]


KILLED = """
import os
from edgecore.sources import resolve
resolve("hf:org/name", on_progress=lambda done, total, stage="": done > 50_000 and os.kill(os.getpid(), 9))
"""


def test_a_killed_process_leaves_a_beginning_that_the_next_one_completes(site: Site, model: bytes) -> None:
    offer(site, {"tiny.gguf": model})
    killed = subprocess.run([sys.executable, "-c", KILLED], cwd=Path(__file__).parents[2], check=False)
    assert killed.returncode == -9
    assert resolve("hf:org/name").path.read_bytes() == model
    second = site.of(f"/org/name/resolve/{COMMIT}/tiny.gguf")[1].range
    assert second is not None
    assert int(second.removeprefix("bytes=").rstrip("-")) >= 50_000


def test_a_cancelled_folder_keeps_the_files_that_are_whole(site: Site, tmp_path: Path) -> None:
    wanted = bytes_of(tiny_llama(tmp_path / "tiny"))
    offer(site, wanted)

    def stop(done: int, total: int, stage: str = "") -> None:
        if "safetensors" in stage:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        resolve("hf:org/name", on_progress=stop)
    assert bytes_of(resolve("hf:org/name").path) == wanted
    assert len(site.of(f"/org/name/resolve/{COMMIT}/config.json")) == 1


@pytest.mark.parametrize("name", ["model", "config"])
def test_a_wrong_digest_is_corrupt_whether_lfs_or_git_keeps_the_file(site: Site, tmp_path: Path, name: str) -> None:
    offer(site, bytes_of(tiny_llama(tmp_path / "tiny")), **{name: "1" * (64 if name == "model" else 40)})
    with pytest.raises(CorruptModel, match=f"{name}.*does not have the") as error:
        resolve("hf:org/name")
    assert "the hub" in error.value.what
    assert not list(paths.sources().rglob(f"*{name}.*"))


@pytest.mark.parametrize(
    ("status", "header", "complaint"),
    [(404, "RepoNotFound", "no such repository"), (403, "GatedRepo", "terms to be accepted"), (500, "", "hub answers")],
)
def test_a_hub_that_refuses_says_why(site: Site, status: int, header: str, complaint: str) -> None:
    site.statuses["/api/models/org/name"] = status
    site.error_codes["/api/models/org/name"] = header
    with pytest.raises(ModelNotFound, match=complaint):
        resolve("hf:org/name")


def test_a_missing_revision_is_named(site: Site, model: bytes) -> None:
    offer(site, {"tiny.gguf": model})
    site.statuses["/api/models/org/name/revision/v9"] = 404
    site.error_codes["/api/models/org/name/revision/v9"] = "RevisionNotFound"
    with pytest.raises(ModelNotFound, match="no revision 'v9'"):
        resolve("hf:org/name@v9")


def test_a_hub_without_an_answer_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Timeout, match="does not answer"):
        resolve("hf:org/name")


def test_without_the_library_the_install_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(BackendUnavailable, match="huggingface_hub, which is not installed") as error:
        hub.fetch("org/name", lambda done, total, stage="": None, lambda folder: None)
    assert error.value.hint == "python -m pip install huggingface_hub"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("org/name", Wanted("org/name", None, None, None)),
        ("org/name@v1.0", Wanted("org/name", "v1.0", None, None)),
        ("org/name@refs/pr/7:Q8_0", Wanted("org/name", "refs/pr/7", "Q8_0", None)),
        ("org/name:Q4_K_M", Wanted("org/name", None, "Q4_K_M", None)),
        ("org/name/sub/model.gguf", Wanted("org/name", None, None, "sub/model.gguf")),
        ("org/name@main/model.gguf", Wanted("org/name", "main", None, "model.gguf")),
    ],
)
def test_a_spec_is_taken_apart(text: str, wanted: Wanted) -> None:
    assert parse(text) == wanted


QUANTS = ["m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m.Q8_0.gguf", "sub/m-f16.gguf", "m-IQ4_XS.gguf"]


@pytest.mark.parametrize(
    ("files", "wanted", "answer"),
    [
        (QUANTS, Wanted("o/n", None, "Q4_K_M", None), ["m-Q4_K_M.gguf"]),
        (QUANTS, Wanted("o/n", None, "q8_0", None), ["m.Q8_0.gguf"]),
        (QUANTS, Wanted("o/n", None, "F16", None), ["sub/m-f16.gguf"]),
        (QUANTS, Wanted("o/n", None, "Q4_K", None), ModelNotFound),
        (["a-Q8_0.gguf", "b-Q8_0.gguf"], Wanted("o/n", None, "Q8_0", None), BadRequest),
        (["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"], Wanted("o/n", None, None, None), UnsupportedModel),
        (["pytorch_model.bin", "config.json"], Wanted("o/n", None, None, None), UnsupportedModel),
        (["README.md"], Wanted("o/n", None, None, None), ModelNotFound),
        (["a.gguf"], Wanted("o/n", None, None, "b.gguf"), ModelNotFound),
        (
            ["config.json", "adapter.safetensors"],
            Wanted("o/n", None, None, None),
            ["adapter.safetensors", "config.json"],
        ),
    ],
)
def test_the_choice_among_a_repository_s_files(
    files: list[str], wanted: Wanted, answer: list[str] | type[EdgecoreError]
) -> None:
    if isinstance(answer, list):
        assert choose(files, wanted) == answer
        return
    with pytest.raises(answer) as error:
        choose(files, wanted)
    assert error.value.supported


def test_the_user_s_own_hub_cache_is_left_alone(site: Site, model: bytes) -> None:
    offer(site, {"tiny.gguf": model})
    resolve("hf:org/name")
    assert not Path(os.environ["HF_HOME"]).exists()
