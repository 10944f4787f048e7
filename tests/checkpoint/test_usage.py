"""How matrices are used on a text, layer by layer: what the oracle computes, and what it computes with rounded ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from edgecore.checkpoint import Checkpoint, open_checkpoint
from edgecore.checkpoint.gptq import compensated
from edgecore.checkpoint.oracle import Floats, KVCache, Oracle
from edgecore.checkpoint.usage import walk
from edgecore.contract import Cancelled

from support.tiny import TEXT, tiny_llama

HEAD = "model.embed_tokens.weight"
Seen = dict[tuple[str, ...], Floats]


def seen(model: Checkpoint, pieces: list[list[int]], changed: Mapping[str, Floats]) -> Seen:
    """What `walk` tells where these matrices become others."""
    found: Seen = {}

    def rounded(names: tuple[str, ...], used: Floats) -> Mapping[str, Floats]:
        found[names] = used
        return {name: changed[name] for name in names if name in changed}

    walk(model.decoder, model.tensors, pieces, rounded)
    return found


def pieces_of(model: Checkpoint) -> list[list[int]]:
    ids = model.tokenizer.encode(TEXT, add_special=False)
    return [ids[:150], ids[150:180]]


@pytest.mark.parametrize("tied", [True, False])
def test_the_walk_tells_what_enters_every_matrix_in_the_order_of_the_computation(tied: bool, tmp_path: Path) -> None:
    with open_checkpoint(tiny_llama(tmp_path / "tiny", layers=2, tied=tied)) as model:
        pieces, decoder = pieces_of(model), model.decoder
        found = seen(model, pieces, {})
        inner = [names for names in found if len(names) > 1 or ".layers." in names[0]]
        assert len(inner) == 8
        assert [name.split(".")[4] for name in inner[0]] == ["q_proj", "k_proj", "v_proj"]
        assert list(found)[-1] == ((HEAD if tied else "lm_head.weight"),)
        table = model.tensors[HEAD].read()
        x = np.concatenate([table[piece] for piece in pieces])
        x /= np.sqrt((x**2).mean(1, keepdims=True) + decoder.norm_epsilon)
        x *= model.tensors["model.layers.0.input_layernorm.weight"].read()
        assert np.allclose(next(iter(found.values())), x.T @ x / len(x), rtol=1e-3, atol=1e-5)
        oracle, last = Oracle(decoder, model.tensors), model.tensors["model.norm.weight"].read()
        x = np.concatenate([oracle.forward(piece, KVCache(decoder, len(piece))) for piece in pieces])
        x *= last / np.sqrt((x**2).mean(1, keepdims=True) + decoder.norm_epsilon)
        assert np.allclose(list(found.values())[-1], x.T @ x / len(x), rtol=1e-3, atol=1e-5)


def test_later_layers_are_told_of_what_the_earlier_ones_have_become(tmp_path: Path) -> None:
    with open_checkpoint(tiny_llama(tmp_path / "tiny", layers=2)) as model:
        name = "model.layers.0.mlp.down_proj.weight"
        half = {name: model.tensors[name].read() / np.float32(2)}
        plain, changed = (list(seen(model, pieces_of(model), these).values()) for these in ({}, half))
    assert all(np.array_equal(plain[i], changed[i]) for i in range(4))
    assert not any(np.allclose(plain[i], changed[i], rtol=1e-3) for i in range(4, 9))


def test_the_walk_tells_how_far_it_is_and_stops_when_it_is_cancelled(tmp_path: Path) -> None:
    with open_checkpoint(tiny_llama(tmp_path / "tiny", layers=2)) as model:
        steps: list[int] = []

        def report(done: int, total: int, stage: str = "") -> None:
            assert (total, stage) == (8, "measuring activations")
            steps.append(done)
            if done == 5:
                raise Cancelled("enough")

        with pytest.raises(Cancelled):
            walk(model.decoder, model.tensors, pieces_of(model), lambda names, used: {}, report)
    assert steps == [0, 1, 2, 3, 4, 5]


def test_columns_make_up_for_those_before_them_whatever_levels_stand_for() -> None:
    """Powers of two, which no scale and zero point give."""
    random = np.random.default_rng(0)
    x = random.standard_normal((512, 24), np.float32) @ random.standard_normal((24, 64), np.float32)
    x += 0.1 * random.standard_normal((512, 64), np.float32)
    w = random.standard_normal((48, 64), np.float32)

    def snap(column: int, numbers: Floats) -> tuple[Floats, Floats]:
        level = np.clip(np.rint(np.log2(np.abs(numbers) + 1e-9)) + 4, 0, 7)
        return level + 8 * (numbers < 0), np.sign(numbers) * 2.0 ** (level - 4)

    def read(levels: np.ndarray) -> Floats:
        return np.asarray(np.where(levels < 8, 1, -1) * np.float32(2) ** (levels.astype(np.float32) % 8 - 4))

    def lost(used: Floats) -> float:
        return float(np.linalg.norm(x @ (read(compensated(w, used, snap)) - w).T))

    assert lost(np.asarray(x.T @ x / len(x), np.float32)) < 0.7 * lost(np.eye(64, dtype=np.float32))
