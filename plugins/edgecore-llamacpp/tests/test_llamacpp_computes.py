"""What llama.cpp does not compute is refused by name, each thing of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgecore.checkpoint import Activation, Decoder, Rope, RopeScaling, open_checkpoint
from edgecore.contract import UnsupportedModel
from edgecore_llamacpp.computes import check

from support.converted import GOLDENS

DIVISORS = (1.0,) * 8
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "MLPs with gelu_tanh": ("qwen2-biases", {"activation": Activation.GELU_TANH}),
    "MLPs with silu": ("gemma3-old-style", {"activation": Activation.SILU}),
    "output matrix of its own": ("bitnet-plain-silu", {"tied": False}),
    "soft caps on attention": ("gemma3-old-style", {"attention_softcap": 50.0}),
    "soft caps on logits": ("qwen3-tied", {"logit_softcap": 30.0}),
    "scaled by 0.125": ("gemma3-old-style", {"query_scale": 0.125}),
    "biases on the output": ("qwen2-biases", {"output_bias": True}),
    "biases in the MLP": ("qwen2-biases", {"mlp_bias": True}),
    "biases on q, k and v": ("bitnet-plain-silu", {"attention_bias": True}),
    "rotary scaling 'llama3'": ("qwen3-tied", {"rope": Rope(1e6, 32, RopeScaling.LLAMA3, 8.0, original_context=32)}),
    "rotary scaling 'longrope'": (
        "grouped-query-tied",
        {"rope": Rope(1e4, 16, RopeScaling.LONGROPE, divisors=DIVISORS, long_divisors=DIVISORS, original_context=32)},
    ),
    "rotary positions on 8 of 16": ("grouped-query-tied", {"rope": Rope(1e4, 8)}),
    "layers with a window": ("gemma3-old-style", {"local_rope": Rope(1e4, 32, RopeScaling.LINEAR, 2.0)}),
    "second rotary base": ("qwen2-windows", {"local_rope": Rope(1e4, 16)}),
    "4 heads of 32 in a model 64 wide": ("qwen2-biases", {"head_dim": 32, "rope": Rope(1e6, 32)}),
}


def decoder_of(golden: str) -> Decoder:
    with open_checkpoint(GOLDENS / golden) as model:
        return model.decoder


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_computed_is_refused_by_name(what: str) -> None:
    golden, changes = REFUSED[what]
    check(decoder_of(golden))
    with pytest.raises(UnsupportedModel, match=what) as refused:
        check(replace(decoder_of(golden), **changes))
    assert refused.value.supported
    assert refused.value.hint


def test_a_window_that_is_dropped_is_said_where_it_matters() -> None:
    decoder = decoder_of("mistral-window")
    assert "more than 16 tokens" in check(decoder)[0]
    assert check(decoder, max_context=16) == ()
    assert check(decoder_of("gemma3-old-style")) == ()


def test_gemma_27b_has_a_query_scale_of_its_own() -> None:
    large = replace(decoder_of("gemma3-old-style"), layers=62, windowed=(), hidden_size=5376, heads=32, head_dim=128)
    large = replace(large, rope=Rope(1e6, 128), local_rope=Rope(1e4, 128), query_scale=168**-0.5)
    assert check(large) == ()
    with pytest.raises(UnsupportedModel, match="scaled"):
        check(replace(large, query_scale=128**-0.5))
