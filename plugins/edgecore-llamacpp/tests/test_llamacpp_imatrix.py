"""The importance matrix is what its definition says: mean squares of each matrix's inputs, computed here with numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgecore.checkpoint import open_checkpoint
from edgecore.contract import Artifact, no_progress
from edgecore_llamacpp import imatrix
from edgecore_llamacpp.model import Model

from support.tiny import TEXT


@pytest.fixture(scope="module")
def measured(tiny_gguf: Artifact) -> imatrix.Importance:
    model = Model(tiny_gguf.model)
    try:
        return imatrix.measure(model, TEXT, 1, no_progress, chunk=64)
    finally:
        model.close()


def test_every_matrix_of_the_layers_has_one(measured: imatrix.Importance) -> None:
    kinds = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    assert set(measured) == {f"blk.{layer}.{kind}.weight" for layer in range(2) for kind in kinds}
    assert all(values.dtype == np.float32 and (values >= 0).all() for values in measured.values())
    assert measured["blk.0.attn_q.weight"].shape == (256,)
    assert measured["blk.0.ffn_down.weight"].shape == (512,)


def test_inputs_that_are_shared_give_the_same(measured: imatrix.Importance) -> None:
    assert np.array_equal(measured["blk.1.attn_q.weight"], measured["blk.1.attn_v.weight"])
    assert np.array_equal(measured["blk.1.ffn_gate.weight"], measured["blk.1.ffn_up.weight"])
    assert not np.array_equal(measured["blk.1.attn_q.weight"], measured["blk.1.ffn_up.weight"])


def test_the_first_layers_input_is_the_normed_embedding(measured: imatrix.Importance, tiny: Path) -> None:
    """q, k and v of the first layer see nothing but RMSNorm of the embeddings, which numpy can compute."""
    with open_checkpoint(tiny) as model:
        ids = model.tokenizer.encode(TEXT)
        ids = ids[: len(ids) // 64 * 64]
        rows = model.tensors["model.embed_tokens.weight"].read()[ids]
        gain = model.tensors["model.layers.0.input_layernorm.weight"].read()
        normed = rows / np.sqrt((rows**2).mean(1, keepdims=True) + model.decoder.norm_epsilon) * gain
    np.testing.assert_allclose(measured["blk.0.attn_q.weight"], (normed**2).mean(0), rtol=2e-3)


def test_chunks_can_be_limited(tiny_gguf: Artifact, measured: imatrix.Importance) -> None:
    model = Model(tiny_gguf.model)
    try:
        first = imatrix.measure(model, TEXT, 1, no_progress, chunk=64, most_chunks=1)
        whole = imatrix.measure(model, TEXT, 1, no_progress, chunk=64)
    finally:
        model.close()
    assert not np.array_equal(first["blk.0.attn_q.weight"], whole["blk.0.attn_q.weight"])
    assert np.array_equal(measured["blk.0.attn_q.weight"], whole["blk.0.attn_q.weight"])
