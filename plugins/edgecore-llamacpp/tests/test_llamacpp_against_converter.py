"""Our converter against llama.cpp's, tensor by tensor and key by key, on small checkpoints of every family.

What llama.cpp's made stands in converted/*.json (make_converted.py says how); nothing here needs torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edgecore.checkpoint import open_checkpoint
from edgecore.contract import no_progress
from edgecore_llamacpp.convert import write_gguf
from edgecore_llamacpp.stored import Stored

from support.converted import GOLDENS, PRECISIONS, TOKENIZER_OF, account, folder_of

CONVERTED = Path(__file__).parent / "converted"
PROJECTIONS = r"blk\.\d+\.(attn_(q|k|v|output)|ffn_(gate|up|down))\.weight"
TENSORS: Mapping[str, Mapping[str, str]] = {
    "gemma3-new-style-soft-caps": {
        r".*norm\.weight": "a float16 source: its converter adds the one to the norms in float16, ours in float32"
    },
    "bitnet-packed": {PROJECTIONS: "its converter rounds finished weights again, with their own mean as the new scale"},
    "bitnet-unpacked": {PROJECTIONS: "its converter unpacks what is not packed, and has eight times as many numbers"},
    "bitnet-plain-silu": {PROJECTIONS: "its converter rounds weights that the model uses as they are"},
    "bitnet-master-weights": {
        PROJECTIONS: "F32 alone: the last bit of the mean of a float32 matrix hangs on torch's order"
    },
}
"""Tensors whose bytes may differ, each with the reason."""
PATTERN = "its runtime takes every sixth layer for a full one unless told, and its converter does not tell it"
KEYS: Mapping[str, Mapping[str, str]] = {
    "gemma3-old-style": {"gemma3.attention.sliding_window_pattern": PATTERN},
    "gemma3-new-style-soft-caps": {"gemma3.attention.sliding_window_pattern": PATTERN},
    "multi-head-untied-bf16": {
        "tokenizer.ggml.token_type": "its converter takes a user-defined piece of tokenizer.model for a normal one"
    },
    "bitnet-unpacked": {"general.size_label": "of its eight times as many numbers"},
}
"""Keys that differ, each with the reason."""


@pytest.fixture(scope="module", params=list(TOKENIZER_OF))
def golden(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def ours(golden: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp(golden)
    folder = folder_of(golden, CONVERTED / "tokenizers" / TOKENIZER_OF[golden], place / "Tiny-Model-1B-Instruct-v2")
    with open_checkpoint(folder) as model:
        for precision in PRECISIONS:
            write_gguf(model, place / f"{precision}.gguf", precision, no_progress)
    return {precision: account(place / f"{precision}.gguf") for precision in PRECISIONS}


@pytest.fixture(scope="module")
def theirs(golden: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((CONVERTED / f"{golden}.json").read_text())
    return record


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensors_are_the_same_bytes_in_the_same_order(
    ours: dict[str, Any], theirs: dict[str, Any], golden: str, precision: str
) -> None:
    made, expected = ours[precision]["tensors"], theirs[precision]["tensors"]
    assert list(made) == list(expected)
    differing = [name for name in expected if made[name] != expected[name]]
    assert [name for name in differing if not any(re.fullmatch(p, name) for p in TENSORS.get(golden, ()))] == []
    if golden != "bitnet-unpacked":
        assert {n: t[:2] for n, t in made.items()} == {n: t[:2] for n, t in expected.items()}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_keys_and_values_are_the_same_but_for_a_list_with_reasons(
    ours: dict[str, Any], theirs: dict[str, Any], golden: str, precision: str
) -> None:
    made, expected = ours[precision]["metadata"], theirs[precision]["metadata"]
    differing = {key for key in made.keys() | expected.keys() if made.get(key) != expected.get(key)}
    assert differing == set(KEYS.get(golden, ()))
    assert [key for key in made if key not in differing] == [key for key in expected if key not in differing]


@pytest.mark.parametrize("golden", ["bitnet-packed", "bitnet-unpacked"], indirect=True)
def test_bitnets_weights_have_the_scale_that_transformers_multiplies_by(
    ours: dict[str, Any], theirs: dict[str, Any], golden: str
) -> None:
    """The oracle, held to transformers' logits on these checkpoints, has the same weights."""
    with open_checkpoint(GOLDENS / golden) as model:
        for layer in range(model.decoder.layers):
            name, tensor = f"blk.{layer}.ffn_up.weight", model.tensors[f"model.layers.{layer}.mlp.up_proj.weight"]
            scale = float(np.abs(tensor.read()).max())
            assert ours["f32"]["tensors"][name][3] == scale
            assert abs(theirs["f32"]["tensors"][name][3] / scale - 1) > 0.5


def test_gemmas_norms_in_float16_are_a_rounding_away() -> None:
    """What the first entry of `TENSORS` costs: half a unit in the last place of float16, near one."""
    with open_checkpoint(GOLDENS / "gemma3-new-style-soft-caps") as model:
        tensor = model.tensors["model.layers.0.input_layernorm.weight"]
        exact, rounded = tensor.read(), (tensor.stored(0, 64).astype(np.float16) + np.float16(1)).astype(np.float32)
    assert 0 < np.abs(exact / rounded - 1).max() < 2**-10


@pytest.mark.parametrize("stored", list(Stored))
def test_each_type_is_packed_as_the_gguf_package_does(stored: Stored) -> None:
    random = np.random.default_rng(0)
    drawn = random.standard_normal((700, 320), np.float32) * np.exp(random.uniform(-12, 8, (700, 1))).astype(np.float32)
    halves = np.arange(-700 * 160, 700 * 160, dtype=np.float32).reshape(700, 320) % 128 - 63.5
    halves[:, ::32] = 127
    edges = np.array([0.0, -0.0, 1e-45, -1e-40, 6e-8, 65504, -65504, 0.49999997] * 40, np.float32).reshape(1, 320)
    for values in (drawn, halves, edges, np.zeros((1, 320), np.float32)):
        expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType[stored.name])
        assert stored.pack(values).tobytes() == expected.tobytes()
