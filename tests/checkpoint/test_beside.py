"""What stands beside a text model's weights is the same whoever's format the weights are in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgecore.checkpoint import beside, open_checkpoint
from edgecore.contract import CorruptModel, ModelNotFound

from support.gguf_files import write_gguf
from support.tiny import CHAT_TEMPLATE, tiny_llama


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


def test_generation_ends_where_our_sessions_end_and_keeps_what_the_source_says(source: Path, tmp_path: Path) -> None:
    given, out = shutil.copytree(source, tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    (given / "generation_config.json").write_text(json.dumps({"do_sample": True, "eos_token_id": 2, "top_p": 0.9}))
    with open_checkpoint(given) as model:
        names = beside.write_beside(model, out)
        assert beside.ends(model.tokenizer) == [2, 0]
    assert sorted(names) == sorted(p.name for p in out.iterdir())
    assert set(names) <= set(beside.BESIDE)
    made = json.loads((out / "generation_config.json").read_text())
    assert made == {"do_sample": True, "top_p": 0.9, "bos_token_id": 1, "pad_token_id": 2, "eos_token_id": [2, 0]}
    assert (out / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    shutil.copyfile(given / "config.json", out / "config.json")
    assert beside.open_tokenizer(out).encode("The sea") == beside.open_tokenizer(given).encode("The sea")


def test_a_source_without_a_tokenizer_gives_nothing(source: Path, tmp_path: Path) -> None:
    with open_checkpoint(source) as model:
        bare = write_gguf(model, tmp_path / "bare.gguf", tokenizer=False)
    with open_checkpoint(bare) as model:
        assert beside.write_beside(model, tmp_path) == []
    (tmp_path / "config.json").write_text('{"vocab_size": 512}')
    with pytest.raises(ModelNotFound, match=r"tokenizer\.json"):
        beside.open_tokenizer(tmp_path)


def test_config_says_how_long_a_text_may_be_and_where_longrope_turns(tmp_path: Path) -> None:
    def says(**config: object) -> int:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return beside.trained_context(tmp_path)

    assert beside.trained_context(tmp_path) == 0
    assert says(max_position_embeddings=7) == 7
    assert says(n_positions=5) == 5
    assert says(text_config={"max_position_embeddings": 9}) == 9
    assert says(max_position_embeddings=7, edgecore_max_context=4) == 4
    scaling = {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}
    assert says(max_position_embeddings=64, rope_scaling=scaling, original_max_position_embeddings=16) == 64
    assert beside.longrope_context(tmp_path) == 16
    says(max_position_embeddings=64, rope_scaling={"type": "linear", "factor": 2.0})
    assert beside.longrope_context(tmp_path) == 0
    with pytest.raises(CorruptModel, match="max_position_embeddings"):
        says(max_position_embeddings="many")
