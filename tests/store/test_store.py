"""Artifacts: found by id or its beginning, sealed, verified, exported, opened anywhere."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from edgecore.contract.artifacts import Artifact, Fallback, PayloadFile, Weights
from edgecore.contract.errors import (
    BadRequest,
    CorruptModel,
    ModelNotFound,
    PluginFault,
    Timeout,
    UnsupportedModel,
)
from edgecore.store import Store, home, request_id

from support.storing import described, publish


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_the_default_store_lies_under_edgecore_home(edgecore_home: Path) -> None:
    assert home() == edgecore_home
    assert Store().root == edgecore_home / "artifacts"


def test_a_published_artifact_reads_back_with_every_fact(store: Store) -> None:
    facts = replace(
        described("a-1"),
        family="llama",
        context_length=2048,
        weights=Weights(4.5, 4.25, 1000, (Fallback("output.weight", "q6_k", "rows of 576"),)),
        requires={"soc": "57"},
        chain=({"verb": "source", "spec": "x.gguf", "digest": "ab"}, {"verb": "convert", "options": {"n": 1.5}}),
        notes=("one", "two"),
    )
    with store.build("a-1") as staging:
        (staging.path / "model.bin").write_bytes(b"weights")
        published = staging.publish(facts)
    assert published == store.get("a-1") == store.find("a-1") == store.list()[0]
    assert replace(published, path=facts.path, files=()) == replace(facts, files=())
    assert published.model.read_bytes() == b"weights"
    assert published.option("n") == 1.5
    assert store.size(published) == 7
    assert published.files[0].sha256 == hashlib.sha256(b"weights").hexdigest()


def test_the_second_build_of_an_id_finds_the_first(store: Store) -> None:
    first = publish(store, "a-1")
    with store.build("a-1") as staging:
        assert staging.cached == first
        with pytest.raises(BadRequest, match="stored already"):
            staging.publish(first)


def test_a_block_that_ends_without_publishing_leaves_nothing(store: Store) -> None:
    with store.build("a-1") as staging:
        (staging.path / "model.bin").write_bytes(b"half")
    with pytest.raises(FileNotFoundError), store.build("a-1") as staging:
        shutil.copy(staging.path.parent / "no such source", staging.path)
    assert store.list() == []
    assert list((store.root / ".staging").iterdir()) == []


def test_payload_files_are_read_only_and_listed_even_when_the_plugin_forgot_one(store: Store) -> None:
    artifact = publish(store, "a-1", {"model.bin": b"m", "sub/vocab.txt": b"v"})
    assert {(f.path, f.role, f.size) for f in artifact.files} == {
        ("model.bin", "model", 1),
        ("sub/vocab.txt", "other", 1),
    }
    assert [p.stat().st_mode & 0o222 for p in (artifact.path / "model.bin", artifact.path / "sub/vocab.txt")] == [0, 0]


def test_a_linked_payload_becomes_a_copy_and_the_source_keeps_its_mode(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(b"mine")
    mode = source.stat().st_mode
    with store.build("a-1") as staging:
        os.link(source, staging.path / "model.bin")
        (staging.path / "also.bin").symlink_to(source)
        artifact = staging.publish(described("a-1"))
    source.unlink()
    assert [(artifact.path / name).read_bytes() for name in ("model.bin", "also.bin")] == [b"mine", b"mine"]
    assert not (artifact.path / "also.bin").is_symlink()
    assert mode & 0o200


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ((PayloadFile("gone.bin", "model"),), "gone.bin is in Made.files and was not written"),
        ((PayloadFile("../out.bin", "model"),), "not a relative path inside"),
        ((PayloadFile("model.bin", "brain"),), "role 'brain'"),
        ((PayloadFile("model.bin", "model"), PayloadFile("b.bin", "model")), "more than one file of role 'model'"),
        ((PayloadFile("model.bin", "model"), PayloadFile("model.bin", "other")), "twice"),
    ],
)
def test_a_plugin_that_answers_wrong_files_is_told_which(
    store: Store, files: tuple[PayloadFile, ...], complaint: str
) -> None:
    with pytest.raises(PluginFault, match=complaint):
        publish(store, "a-1", {"model.bin": b"m", "b.bin": b"b"}, files)
    assert store.list() == []


def test_a_plugin_may_not_write_the_stores_own_names(store: Store) -> None:
    with pytest.raises(PluginFault, match=r"it wrote artifact\.json"):
        publish(store, "a-1", {"model.bin": b"m", "artifact.json": b"{}"})


def test_an_artifact_is_found_by_the_unique_beginning_of_its_id_or_of_its_digest(store: Store) -> None:
    for identity in ("llamacpp-q4_k_m-3f9a11", "llamacpp-q8_0-77aa01", "openvino-int8-77ab02"):
        publish(store, identity)
    assert store.find("openv").id == "openvino-int8-77ab02"
    assert store.find("3f9a").id == "llamacpp-q4_k_m-3f9a11"
    assert store.find("77aa").id == "llamacpp-q8_0-77aa01"
    with pytest.raises(BadRequest, match="begins 2 ids") as ambiguous:
        store.find("77a")
    assert ambiguous.value.supported == "llamacpp-q8_0-77aa01, openvino-int8-77ab02"
    with pytest.raises(ModelNotFound) as missing:
        store.find("mlx")
    assert "llamacpp-q8_0-77aa01" in missing.value.supported


def test_an_id_that_begins_another_is_found_itself(store: Store) -> None:
    publish(store, "a")
    publish(store, "a-1")
    assert store.find("a").id == "a"


@pytest.mark.parametrize("identity", ["../x", "", "a/b", ".staging", "a" * 200])
def test_a_path_is_not_an_id(store: Store, identity: str) -> None:
    with pytest.raises(BadRequest, match="not an artifact's id"):
        store.get(identity)


def test_verify_finds_what_was_changed_removed_and_added(store: Store) -> None:
    artifact = publish(store, "a-1", {"model.bin": b"weights", "b.bin": b"b", "c.bin": b"c"})
    assert store.verify("a-1") == []
    for name in ("model.bin", "b.bin"):
        (artifact.path / name).chmod(0o644)
    (artifact.path / "model.bin").write_bytes(b"weighty")
    (artifact.path / "new.bin").write_bytes(b"n")
    assert store.verify("a-1") == [
        "model.bin is not what was sealed: its SHA-256 differs",
        "new.bin was not there when it was sealed",
    ]
    (artifact.path / "c.bin").unlink()
    assert "c.bin is missing" in store.verify("a-1")[0]


def test_a_payload_of_another_size_is_noticed_when_opening(store: Store) -> None:
    artifact = publish(store, "a-1")
    artifact.model.chmod(0o644)
    artifact.model.write_bytes(b"short")
    with pytest.raises(CorruptModel, match=r"model\.bin has 5 bytes where 7 were sealed"):
        store.find("a-1")
    assert store.list() == []
    assert list(store.unreadable()) == ["a-1"]


def test_building_a_damaged_artifact_again_mends_it(store: Store) -> None:
    publish(store, "a-1").model.unlink()
    assert store.list() == []
    assert publish(store, "a-1").model.read_bytes() == b"weights"
    assert store.verify("a-1") == []


def test_a_copied_artifact_opens_elsewhere_without_its_store(store: Store, tmp_path: Path) -> None:
    artifact = publish(store, "a-1")
    store.add_evidence(artifact, {"kind": "quality", "verdict": "accepted"})
    shutil.copytree(artifact.path, tmp_path / "usb stick" / "model")
    shutil.rmtree(store.root)
    copied = Store(tmp_path / "other").open_path(tmp_path / "usb stick" / "model")
    assert copied == replace(artifact, path=tmp_path / "usb stick" / "model")
    assert copied.model.read_bytes() == b"weights"
    assert Store(tmp_path / "other").evidence(copied) == [{"kind": "quality", "verdict": "accepted"}]


@pytest.mark.parametrize("content", [None, b"weight", b"Weights"])
def test_a_damaged_copy_does_not_ask_for_the_good_one_to_be_removed(
    store: Store, tmp_path: Path, content: bytes | None
) -> None:
    artifact = publish(store, "a-1")
    for folder, hint in ((tmp_path / "copy", "copy it again"), (artifact.path, "edgecore cache rm a-1")):
        if folder != artifact.path:
            shutil.copytree(artifact.path, folder)
        model = folder / artifact.model.name
        model.unlink()
        if content is not None:
            model.write_bytes(content)
        with pytest.raises(CorruptModel, match=f"{model.name}.* (is missing|7 were sealed|SHA-256)") as caught:
            store.open_path(folder)
        assert hint in caught.value.hint


def test_a_folder_without_artifact_json_is_no_artifact(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="not an artifact"):
        store.open_path(tmp_path)


def test_an_artifact_from_a_newer_edgecore_says_so(store: Store) -> None:
    artifact = publish(store, "a-1")
    publish(store, "b-1")
    path = artifact.path / "artifact.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 2, "files": "reordered"}))
    with pytest.raises(UnsupportedModel, match="newer edgecore: schema 2") as error:
        store.find("a-1")
    assert error.value.supported == "schema 1 and older"
    assert [a.id for a in store.list()] == ["b-1"]
    with pytest.raises(UnsupportedModel, match="schema 2"), store.build("a-1"):
        pytest.fail("it must not be built over")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"files": [{"path": "../../etc/passwd", "role": "model", "size": 1, "sha256": "0" * 64}]},
            r"files\[0\]\.path",
        ),
        ({"files": [{"path": "C:/x", "role": "model", "size": 1, "sha256": "0" * 64}]}, r"files\[0\]\.path"),
        ({"files": [{"path": "model.bin", "role": "model", "size": "7", "sha256": "0" * 64}]}, r"files\[0\]\.size"),
        ({"backend": 3}, "backend is 3"),
        ({"weights": {"bits_per_weight": "many"}}, r"weights\.bits_per_weight"),
        ({"schema": None}, "schema is None"),
    ],
)
def test_a_damaged_artifact_json_is_named_with_its_field(
    store: Store, change: dict[str, object], complaint: str
) -> None:
    path = publish(store, "a-1").path / "artifact.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CorruptModel, match=complaint) as error:
        store.find("a-1")
    assert "artifact.json" in error.value.what


def test_an_artifact_json_that_is_cut_short_is_corrupt(store: Store) -> None:
    path = publish(store, "a-1").path / "artifact.json"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CorruptModel, match="is not JSON"):
        store.get("a-1")


def test_remove_takes_an_artifact_away_even_a_damaged_one(store: Store) -> None:
    publish(store, "a-1")
    (publish(store, "b-1").path / "artifact.json").write_text("{")
    store.remove("a-1")
    store.remove("b-1")
    assert store.list() == []
    assert not store.unreadable()
    with pytest.raises(ModelNotFound):
        store.remove("a-1")


def test_export_gives_a_verified_copy_and_refuses_to_overwrite(store: Store, tmp_path: Path) -> None:
    artifact = publish(store, "a-1", {"model.bin": b"weights", "sub/b.bin": b"b"})
    store.add_evidence(artifact, {"kind": "quality"})
    out = tmp_path / "new" / "out"
    exported = store.export(artifact, out)
    assert exported == replace(artifact, path=out)
    assert store.verify_artifact(exported) == []
    assert store.evidence(exported) == [{"kind": "quality"}]
    assert store.export(artifact, out) == exported
    other = publish(store, "b-1")
    with pytest.raises(BadRequest, match="exists and is not this artifact"):
        store.export(other, out)
    assert store.open_path(out).id == "a-1"
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(BadRequest, match="exists"):
        store.export(other, file)
    assert file.read_text() == "precious"


def test_export_of_a_tampered_artifact_leaves_nothing_at_the_target(store: Store, tmp_path: Path) -> None:
    artifact = publish(store, "a-1")
    artifact.model.chmod(0o644)
    artifact.model.write_bytes(b"weighty")
    with pytest.raises(CorruptModel, match="SHA-256 differs"):
        store.export(artifact, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store"]


def test_a_failing_export_leaves_nothing_at_the_target(store: Store, tmp_path: Path) -> None:
    artifact = publish(store, "a-1", {"model.bin": b"weights", "z.bin": b"z"})
    (artifact.path / "z.bin").unlink()
    with pytest.raises(FileNotFoundError):
        store.export(artifact, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store"]


def test_native_files_carry_no_evidence_and_are_not_exported(store: Store, tmp_path: Path) -> None:
    native = Artifact(tmp_path, "b", "text", "gguf", "q8_0", ())
    assert store.evidence(native) == []
    with pytest.raises(BadRequest, match="native"):
        store.add_evidence(native, {})
    with pytest.raises(BadRequest, match="native"):
        store.export(native, tmp_path / "out")


def test_evidence_that_is_not_json_is_left_out(store: Store) -> None:
    artifact = publish(store, "a-1")
    store.add_evidence(artifact, {"kind": "quality", "n": 1})
    (artifact.path / "evidence" / "note.json").write_text("not json")
    store.add_evidence(artifact, {"kind": "Speed / x86", "n": 2})
    assert [r["n"] for r in store.evidence(artifact)] == [1, 2]
    assert store.verify("a-1") == []


def test_a_builder_in_another_thread_is_waited_for_and_the_wait_can_end(store: Store) -> None:
    building, finish = threading.Event(), threading.Event()

    def build() -> None:
        with store.build("a-1") as staging:
            building.set()
            finish.wait(30)
            (staging.path / "model.bin").write_bytes(b"theirs!")
            staging.publish(described("a-1"))

    thread = threading.Thread(target=build)
    thread.start()
    assert building.wait(30)
    with pytest.raises(Timeout, match="still builds a-1"), store.build("a-1", wait=0.3):
        pytest.fail("not ours")
    calls: list[int] = []

    def stop_after_two() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), store.build("a-1", on_wait=stop_after_two):
        pytest.fail("not ours")
    assert len(calls) == 2
    with store.build("b-1") as staging:
        assert staging.cached is None
    finish.set()
    with store.build("a-1") as staging:
        assert staging.cached is not None
        assert staging.cached.model.read_bytes() == b"theirs!"
    thread.join()


def test_the_same_request_has_the_same_id_whatever_the_order_of_its_fields() -> None:
    assert request_id({"a": 1, "b": [1, 2]}) == request_id({"b": (1, 2), "a": 1})
    assert len(request_id({})) == 16
    assert len({request_id(f) for f in ({"a": 1}, {"a": 1.0}, {"a": "1"}, {"a": None}, {"a": True}, {"b": 1})}) == 6
    with pytest.raises(TypeError):
        request_id({"a": Path("x")})
    with pytest.raises(ValueError):
        request_id({"a": float("nan")})
