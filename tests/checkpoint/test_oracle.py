"""The oracle is right: it answers as transformers does, however a text is fed to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgecore.checkpoint import Activation, Oracle, open_checkpoint
from edgecore.checkpoint.families import FAMILIES
from edgecore.contract.errors import BadRequest, DoesNotFit

from support.tiny import tiny_llama

GOLDENS = sorted(path.parent for path in (Path(__file__).parent / "goldens").glob("*/golden.npz"))
TOLERANCE = 1e-4
"""On logits with a standard deviation near 4."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    model = open_checkpoint(tiny_llama(tmp_path_factory.mktemp("tiny")))
    return Oracle(model.decoder, model.tensors, resident=True)


def test_the_goldens_cover_every_shape_of_attention_and_every_rope() -> None:
    decoders = [open_checkpoint(folder).decoder for folder in GOLDENS]
    assert {d.family for d in decoders} == set(FAMILIES)
    assert {d.rope.scaling.value for d in decoders} == {"none", "linear", "llama3", "longrope"}
    assert {d.activation for d in decoders} == set(Activation)
    for family in FAMILIES:
        assert {d.tied for d in decoders if d.family == family} >= {True} or family == "mistral"
    assert any(d.heads == d.kv_heads for d in decoders)
    assert any(1 < d.kv_heads < d.heads for d in decoders)
    assert any(d.kv_heads == 1 < d.heads for d in decoders)
    assert any(d.head_dim != d.hidden_size // d.heads for d in decoders)
    assert any(d.attention_bias and d.output_bias and d.mlp_bias for d in decoders)
    assert any(d.attention_bias and not d.output_bias for d in decoders)
    assert any(d.window and not d.windowed for d in decoders)
    assert any(d.windowed and d.local_rope is None for d in decoders)
    assert any(d.attention_softcap and d.logit_softcap for d in decoders)
    assert any(d.rope.dim < d.head_dim for d in decoders)
    assert {d.int8_activations for d in decoders if d.family == "bitnet"} == {True, False}


@pytest.mark.parametrize("folder", GOLDENS, ids=lambda f: f.name)
@pytest.mark.parametrize("resident", [True, False], ids=["resident", "from-file"])
def test_logits_are_those_of_transformers(folder: Path, resident: bool) -> None:
    golden = np.load(folder / "golden.npz")
    with open_checkpoint(folder) as model:
        oracle = Oracle(model.decoder, model.tensors, resident=resident)
        logits = np.concatenate(list(oracle.score(golden["tokens"], chunk=20)))
    assert logits.dtype == np.float32
    assert np.abs(logits - golden["logits"]).max() < TOLERANCE


@pytest.mark.parametrize("folder", GOLDENS, ids=lambda f: f.name)
def test_in_pieces_and_after_a_rewind_the_answer_is_that_of_transformers(folder: Path) -> None:
    """In one piece: above. A rewind takes longrope back to its short frequencies and forward again."""
    golden = np.load(folder / "golden.npz")
    tokens = golden["tokens"].tolist()
    with open_checkpoint(folder) as model:
        context = Oracle(model.decoder, model.tensors, resident=True).context()
        for start in range(0, len(tokens), 7):
            in_chunks = context.prefill(tokens[start : start + 7])
        context.rewind(len(tokens) - 5)
        for token in tokens[5:]:
            stepped = context.step(token)
    assert np.abs(in_chunks - golden["logits"][-1]).max() < TOLERANCE
    assert np.abs(stepped - golden["logits"][-1]).max() < TOLERANCE


@pytest.mark.parametrize("folder", GOLDENS, ids=lambda f: f.name)
def test_greedy_continuation_is_that_of_transformers(folder: Path) -> None:
    golden = np.load(folder / "golden.npz")
    with open_checkpoint(folder) as model:
        context = Oracle(model.decoder, model.tensors, resident=True).context()
        logits = context.prefill(golden["tokens"][:8])
        made = []
        for _ in golden["greedy"]:
            made.append(int(np.argmax(logits)))
            logits = context.step(made[-1])
    assert made == golden["greedy"].tolist()


def test_whole_in_chunks_and_token_by_token_give_the_same(tiny: Oracle) -> None:
    tokens = np.random.default_rng(1).integers(0, 512, 300).tolist()
    whole = tiny.context().prefill(tokens)
    chunks = tiny.context()
    for start in range(0, 300, 77):
        in_chunks = chunks.prefill(tokens[start : start + 77])
    steps = tiny.context()
    for token in tokens:
        stepped = steps.step(token)
    scored = list(tiny.score(tokens))[-1][-1]
    for other in (in_chunks, stepped, scored):
        assert np.abs(whole - other).max() < TOLERANCE
    assert chunks.tokens == steps.tokens == tuple(tokens)


def test_after_a_rewind_nothing_remains_of_what_was_forgotten(tiny: Oracle) -> None:
    context = tiny.context()
    context.prefill([5, 6, 7])
    context.prefill([400, 401, 402, 403])
    context.rewind(4)
    assert context.tokens == (5, 6, 7)
    assert np.array_equal(context.step(8), _after(tiny, [5, 6, 7], 8))


def test_reset_forgets_everything(tiny: Oracle) -> None:
    context = tiny.context()
    context.prefill([400, 401])
    context.reset()
    assert context.position == 0
    context.prefill([5, 6, 7])
    assert np.array_equal(context.step(8), _after(tiny, [5, 6, 7], 8))


def test_a_text_longer_than_the_context_is_refused_and_the_cache_is_as_before(tiny: Oracle) -> None:
    context = tiny.context(8)
    context.prefill([1, 2, 3])
    with pytest.raises(DoesNotFit, match="exceed the context"):
        context.prefill([1, 2, 3, 4, 5, 6])
    assert context.tokens == (1, 2, 3)
    assert np.array_equal(context.step(8), _after(tiny, [1, 2, 3], 8))


@pytest.mark.parametrize("tokens", [[], [512], [-1]])
def test_no_tokens_and_ids_outside_the_vocabulary_are_refused(tiny: Oracle, tokens: list[int]) -> None:
    with pytest.raises(BadRequest):
        tiny.context().prefill(tokens)
    with pytest.raises(BadRequest):
        next(tiny.score(tokens))


def test_more_than_was_seen_cannot_be_rewound(tiny: Oracle) -> None:
    with pytest.raises(BadRequest, match="rewind"):
        tiny.context().rewind(1)


def test_score_holds_one_chunk_of_logits_at_a_time(tiny: Oracle) -> None:
    shapes = [chunk.shape for chunk in tiny.score(list(range(150)), chunk=64)]
    assert shapes == [(64, 512), (64, 512), (22, 512)]


def test_the_answer_is_the_callers_to_keep(tiny: Oracle) -> None:
    context = tiny.context()
    first = context.prefill([1, 2, 3])
    kept = first.copy()
    context.step(4)
    assert np.array_equal(first, kept)


def _after(oracle: Oracle, before: list[int], token: int) -> np.ndarray:
    context = oracle.context()
    context.prefill(before)
    return context.step(token)
