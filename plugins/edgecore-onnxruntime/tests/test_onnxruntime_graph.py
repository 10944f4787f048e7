"""The graph answers what the oracle does, for every field of the neutral model, in operators that ONNX Runtime's CPU
kernels are made for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edgecore.checkpoint import Decoder, Oracle, open_checkpoint
from edgecore.contract import no_progress
from edgecore_onnxruntime import graph, onnx_out

from support.bare_onnx import Model
from support.divergence import Floats, divergence, some_tokens
from support.tiny import tiny_llama

GOLDENS = Path(__file__).parents[3] / "tests/checkpoint/goldens"
NAMES = sorted(path.parent.name for path in GOLDENS.glob("*/golden.npz"))
Made = tuple[Decoder, Model]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Made]:
    def call(folder: Path) -> Made:
        file = tmp_path_factory.mktemp("onnx") / "model.onnx"
        with open_checkpoint(folder) as model:
            built = graph.build(model.decoder, "f32", model.decoder.context_length)
            onnx_out.write(built, model, file, file.with_suffix(".data"), no_progress)
            return model.decoder, Model(file)

    return call


def oracle(folder: Path, tokens: Sequence[int]) -> Floats:
    with open_checkpoint(folder) as model:
        return np.concatenate(list(Oracle(model.decoder, model.tensors).score(tokens)))


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest, made: Callable[[Path], Made]) -> tuple[Path, Decoder, Model]:
    folder = GOLDENS / request.param
    return (folder, *made(folder))


def test_every_family_answers_as_the_oracle_however_a_text_is_cut(golden: tuple[Path, Decoder, Model]) -> None:
    folder, decoder, model = golden
    count = min(decoder.context_length, 40)
    if decoder.rope.original_context and decoder.rope.long_divisors:
        count = min(count, decoder.rope.original_context)  # beyond it a session computes all anew
    tokens = some_tokens(decoder, count)
    wanted = oracle(folder, tokens)
    for chunks in ([count], [7] * (count // 7) + [count % 7] * (count % 7 > 0), [1] * count):
        found = divergence(wanted, model.logits(tokens, chunks))
        # A rounded activation that lies between two integers may fall to either side: one position of BitNet's.
        assert np.median(found) < 1e-9
        assert found.mean() < (1e-3 if decoder.int8_activations else 1e-9)


def test_every_family_runs_on_the_operators_that_kernels_are_made_for(
    golden: tuple[Path, Decoder, Model], tmp_path: Path
) -> None:
    _, d, model = golden
    run = model.operators(tmp_path / "optimized.onnx")
    outside = d.rope.dim % 16 or d.head_dim % 16 or d.rope.long_divisors
    assert run["GroupQueryAttention"] == d.layers
    # A division behind the head, of logits with a soft cap, becomes part of it.
    assert run["MatMul"] + run["FusedMatMul"] == 7 * d.layers + 1
    assert run["SkipSimplifiedLayerNormalization"] == 2 * d.layers
    norms = 2 * d.query_key_norm + 2 * d.post_norms + 2 * d.sub_norms
    assert run["RMSNormalization"] == norms * d.layers + 1
    assert run["RotaryEmbedding"] == (2 * d.layers if outside else 0)
    assert run["Transpose"] == 0


def test_longropes_second_set_is_chosen_by_the_length_of_the_text(made: Callable[[Path], Made]) -> None:
    folder = GOLDENS / "phi3-longrope-partial"
    decoder, model = made(folder)
    border = decoder.rope.original_context
    for count in (border - 1, border, border + 1, border + 5):
        tokens = some_tokens(decoder, count)
        assert decoder.rope.is_long(count) == (count > border)
        assert divergence(oracle(folder, tokens), model.logits(tokens, [count])).mean() < 1e-9
    # Once the long set is in use, decoding goes on with it.
    tokens = some_tokens(decoder, border + 6)
    found = model.logits(tokens, [border + 1, 1, 1, 1, 1, 1])
    assert divergence(oracle(folder, tokens)[border:], found[border:]).mean() < 1e-9


def test_a_mask_that_is_longer_than_the_text_turns_its_beginning_as_a_long_texts(made: Callable[[Path], Made]) -> None:
    folder = GOLDENS / "phi3-longrope-partial"
    decoder, model = made(folder)
    count = decoder.rope.original_context + 5
    tokens = some_tokens(decoder, count)
    mask = np.zeros((1, count), np.int64)
    mask[:, :8] = 1
    first = model.call([tokens[:8]], 0, mask, room=count)[0]
    assert divergence(oracle(folder, tokens)[:8], first).max() < 1e-9


@pytest.mark.parametrize("name", ["grouped-query-tied", "mistral-window", "gemma3-old-style", "mistral-own-head-dim"])
def test_texts_of_a_batch_do_not_see_each_other_nor_the_padding(made: Callable[[Path], Made], name: str) -> None:
    """Padding stands behind: attention counts what a mask holds."""
    decoder, model = made(GOLDENS / name)
    long, short = some_tokens(decoder, 24), some_tokens(decoder, 30)[11:]
    padding = len(long) - len(short)
    mask = np.ones((2, len(long)), np.int64)
    mask[1, len(short) :] = 0
    together = model.call([long, short + [0] * padding], 0, mask)
    mask = np.pad(mask, ((0, 0), (0, 1)))
    mask[0, len(long)] = mask[1, len(short)] = 1
    after = model.call([[3], [3]], len(long), mask)
    alone = model.logits([*long, 3], [len(long), 1])
    assert divergence(alone[:-1], together[0]).max() < 1e-8
    assert divergence(alone[-1:], after[0]).max() < 1e-8
    alone = model.logits([*short, 3], [len(short), 1])
    assert divergence(alone[:-1], together[1, : len(short)]).max() < 1e-8
    assert divergence(alone[-1:], after[1]).max() < 1e-8


@pytest.mark.parametrize("name", ["rope-llama3", "gemma3-old-style", "phi3-longrope-new-style"])
def test_past_and_present_may_be_one_buffer_and_a_rewind_is_a_shorter_mask(
    made: Callable[[Path], Made], name: str
) -> None:
    decoder, model = made(GOLDENS / name)
    cache = {key: ort.OrtValue.ortvalue_from_numpy(value) for key, value in model.empty(1, 40).items()}
    binding = model.session.io_binding()
    for key, value in cache.items():
        binding.bind_ortvalue_input(key, value)
        binding.bind_ortvalue_output(key.replace("past_key_values", "present"), value)

    def call(ids: Sequence[int], past: int) -> Floats:
        binding.bind_cpu_input("input_ids", np.array([ids], np.int64))
        binding.bind_cpu_input("attention_mask", np.ones((1, past + len(ids)), np.int64))
        binding.bind_output("logits")
        model.session.run_with_iobinding(binding)
        (logits,) = (value.numpy() for value in binding.get_outputs() if value.shape()[-1] == decoder.vocab_size)
        return np.asarray(logits[0])

    tokens = some_tokens(decoder, 30)
    call(tokens[:20], 0)
    call([1, 2, 3, 4, 5], 20)
    found = np.concatenate([call(tokens[20:29], 20), call(tokens[29:], 29)])
    assert divergence(oracle(GOLDENS / name, tokens)[20:], found).mean() < 1e-9


def test_only_as_many_last_positions_get_logits_as_are_asked_for(made: Callable[[Path], Made]) -> None:
    decoder, model = made(GOLDENS / "grouped-query-tied")
    tokens = some_tokens(decoder, 9)
    every = model.call([tokens], 0)[0]
    for last in (1, 4, 9, 100):
        found = model.call([tokens], 0, last=last)[0]
        assert found.shape == (min(last, 9), decoder.vocab_size)
        assert np.allclose(found, every[-last:], atol=1e-5)
    assert [given.name for given in model.session.get_overridable_initializers()] == [graph.LAST]


def test_inputs_and_outputs_have_the_names_that_onnxruntime_genai_knows(
    made: Callable[[Path], Made], tmp_path: Path
) -> None:
    _, model = made(tiny_llama(tmp_path / "hf"))
    cache = {
        f"{kind}.{layer}.{part}": ("tensor(float)", ["batch", 2, length, 64])
        for kind, length in (("past_key_values", "past_length"), ("present", "total_length"))
        for layer in (0, 1)
        for part in ("key", "value")
    }
    inputs = {port.name: (port.type, port.shape) for port in model.session.get_inputs()}
    outputs = {port.name: (port.type, port.shape) for port in model.session.get_outputs()}
    assert inputs | outputs == {
        "input_ids": ("tensor(int64)", ["batch", "tokens"]),
        "attention_mask": ("tensor(int64)", ["batch", "total_length"]),
        "logits": ("tensor(float)", ["batch", "tokens", 512]),
        **cache,
    }


def test_versions_of_operators_are_those_that_are_used(made: Callable[[Path], Made], tmp_path: Path) -> None:
    _, model = made(tiny_llama(tmp_path / "hf"))
    file = onnx.load(model.file, load_external_data=False)
    assert {entry.domain: entry.version for entry in file.opset_import} == {"": 23, "com.microsoft": 1}
    assert {node.domain for node in file.graph.node} == {"", "com.microsoft"}
    onnx.checker.check_model(str(model.file))
