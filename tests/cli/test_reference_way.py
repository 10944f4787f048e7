"""One complete way through the command line with the reference plugin, which needs no runtime."""

import getpass
import socket
from pathlib import Path

import numpy as np
import pytest

from support.cli import edgecore
from support.tiny import tiny_llama


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny")


def test_inspect_answers_from_headers(tiny):
    facts = edgecore("inspect", tiny, "--json").json
    assert facts["family"] == "llama"
    assert facts["layers"] == 2
    assert facts["supported"] == "yes"
    assert any(b["name"] == "reference" and b["takes"] == "yes" for b in facts["backends"])


def test_greedy_runs_repeat_and_stream_the_same_text(tiny):
    how = ["run", tiny, "--backend", "reference", "-p", "The lamp", "-n", "8", "--temp", "0"]
    first, second = edgecore(*how), edgecore(*how, "--json")
    assert first.code == 0, first.err
    assert second.json["text"] == first.out.removesuffix("\n")
    assert second.json["finish"] in ("length", "eos")


def test_a_seed_repeats_and_another_seed_differs(tiny):
    def run(seed):
        return edgecore("run", tiny, "--backend", "reference", "-p", "The", "-n", "12", "--temp", "1.5", "--top-k", "0",
                        "--seed", seed, "--json").json["tokens"]  # fmt: skip

    assert run(7) == run(7)
    assert run(7) != run(8)


def test_build_makes_an_artifact_once(tiny):
    first = edgecore("build", tiny, "--backend", "reference", "--precision", "f32", "--json")
    assert first.code == 0, first.err
    assert first.json["quality"]["verdict"] == "accepted"
    second = edgecore("build", tiny, "--backend", "reference", "--precision", "f32", "--json")
    assert second.json["id"] == first.json["id"]
    listed = edgecore("cache", "ls", "--json").json["artifacts"]
    assert first.json["id"] in [a["id"] for a in listed]
    assert edgecore("cache", "verify").code == 0


def test_a_built_artifact_runs_by_its_id_and_by_a_copy_elsewhere(tiny, tmp_path):
    made = edgecore("build", tiny, "--backend", "reference", "--precision", "f32", "-o", tmp_path / "copy", "--json")
    assert made.code == 0, made.err
    how = ["-p", "The lamp", "-n", "4", "--temp", "0"]
    by_id = edgecore("run", made.json["id"], *how)
    assert by_id.code == 0, by_id.err
    copied = edgecore("run", tmp_path / "copy", *how, EDGECORE_HOME=str(tmp_path / "another-home"))
    assert copied.code == 0, copied.err
    assert copied.out == by_id.out


def test_a_tampered_artifact_is_found_by_verify(tiny):
    made = edgecore("build", tiny, "--backend", "reference", "--precision", "f32", "--json").json

    victim = next(p for p in Path(made["path"]).rglob("*.safetensors"))
    victim.chmod(0o644)
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    result = edgecore("cache", "verify")
    assert result.code == 1
    assert victim.name in result.out


def test_chat_answers_every_turn(tiny):
    result = edgecore("chat", tiny, "--backend", "reference", "-n", "4", "--temp", "0", stdin="Hello\nAnd again\n")
    assert result.code == 0, result.err
    assert len(result.out.splitlines()) >= 2


def test_tokenize_shows_ids_and_text(tiny):
    result = edgecore("tokenize", tiny, "The lamp went out", "--backend", "reference", "--json")
    assert "".join(result.json["pieces"]).endswith("The lamp went out")
    ids = edgecore("tokenize", tiny, "The lamp went out", "--backend", "reference", "--ids")
    assert [int(t) for t in ids.out.split()] == result.json["tokens"]


def test_logits_are_written_for_every_position(tiny, tmp_path):
    np.save(tmp_path / "tokens.npy", np.array([5, 9, 33, 100], dtype=np.int64))
    result = edgecore(
        "logits", tiny, "--backend", "reference", "--tokens", tmp_path / "tokens.npy", "--out", tmp_path / "logits.npy"
    )
    assert result.code == 0, result.err
    logits = np.load(tmp_path / "logits.npy")
    assert logits.dtype == np.float32
    assert logits.shape == (4, 512)
    assert np.isfinite(logits).all()


def test_doctor_probes_and_listing_remembers():
    doctor = edgecore("doctor", "--json")
    assert doctor.code in (0, 3)
    rows = {b["name"]: b for b in doctor.json["backends"]}
    assert rows["reference"]["probe"]["devices"][0]["available"]
    listed = {b["name"]: b for b in edgecore("backends", "--json").json}
    assert listed["reference"]["probe"]["when"] == rows["reference"]["probe"]["when"]


def test_logits_made_elsewhere_stand_in_for_an_oracle_that_does_not_fit(tiny, tmp_path):
    made = edgecore("logits", tiny, "--backend", "reference", "--level", "quick", "--out", tmp_path / "reference.npy")
    assert made.code == 0, made.err
    found = edgecore(
        "evaluate", tiny, "--backend", "reference", "--precision", "bf16", "--level", "quick",
        "--against", tmp_path / "reference.npy", "--json",
    )  # fmt: skip
    assert found.code == 0, found.err
    assert found.json["method"] == "logits"
    assert 0 < found.json["total"]["kl_mean"] < 0.01
    assert "reference.npy" in found.json["notes"][0]
    assert found.json["file"] is None


def test_logits_of_another_text_are_refused(tiny, tmp_path):
    np.save(tmp_path / "short.npy", np.zeros((5, 512), np.float32))
    found = edgecore(
        "evaluate", tiny, "--backend", "reference", "--level", "quick", "--against", tmp_path / "short.npy"
    )
    assert found.code == 2
    assert "short.npy" in found.err


def test_evidence_is_kept_beside_the_sealed_payload_without_user_or_host(tiny):
    made = edgecore("build", tiny, "--backend", "reference", "--precision", "f32", "--json").json

    records = list((Path(made["path"]) / "evidence").glob("*.json"))
    assert len(records) == 1
    text = records[0].read_text()

    assert socket.gethostname() not in text
    assert f'"{getpass.getuser()}"' not in text
    edgecore("evaluate", made["id"], "--level", "quick")
    assert len(list((Path(made["path"]) / "evidence").glob("*.json"))) == 2
