"""The graphs for an NPU answer what the oracle does: in float32 on a CPU for every field of the neutral model, and in
float16 on the emulator, whole there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.contract import no_progress
from edgecore_onnxruntime import convert_htp, htp_folder, qnn, runtime
from edgecore_onnxruntime.chips import EMULATOR
from edgecore_onnxruntime.htp_network import Network

from support.divergence import Floats, divergence, some_tokens

GOLDENS = Path(__file__).parents[3] / "tests/checkpoint/goldens"
NAMES = sorted(path.parent.name for path in GOLDENS.glob("*/golden.npz"))
CHUNK = 8
ON_EMULATOR = ["grouped-query-tied", "gemma3-new-style-soft-caps", "phi3-longrope-partial", "bitnet-plain-silu"]
"""Between them: tied and not, windows, soft caps, two rotary embeddings, norms of heads, partial rotation, 8 bits."""
emulated = pytest.mark.skipif(bool(qnn.missing(EMULATOR)), reason="onnxruntime-qnn is not here")
Written = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A golden model's folder: everything but its tokenizer."""

    def call(name: str, precision: str) -> Path:
        out = tmp_path_factory.mktemp(name)
        with open_checkpoint(GOLDENS / name) as model:
            context = min(48, model.decoder.context_length)
            convert_htp.write(model, out, context, CHUNK, precision, no_progress)
        return out

    return call


def on_cpu(folder: Path) -> Network:
    return Network(folder, lambda file: runtime.open_model(file, runtime.session_options(1, {})), "cpu")


def oracle(name: str, tokens: Sequence[int]) -> Floats:
    with open_checkpoint(GOLDENS / name) as model:
        return np.concatenate(list(Oracle(model.decoder, model.tensors).score(tokens)))


def answers(network: Network, tokens: Sequence[int], cuts: Sequence[int]) -> Floats:
    """Logits of every position, computed in calls of so many tokens."""
    ids, found = network.checked(tokens), []
    network.clear()
    for count in cuts:
        start = network.filled
        found.append(network.run(ids[start : start + count], count, len(ids)))
    return np.concatenate(found)


@pytest.mark.parametrize("name", NAMES)
def test_every_family_answers_as_the_oracle_however_a_text_is_cut(written: Written, name: str) -> None:
    network = on_cpu(written(name, "f32"))
    count = min(network.description.context, 40)
    with open_checkpoint(GOLDENS / name) as model:
        tokens, rounds = some_tokens(model.decoder, count), model.decoder.int8_activations
    wanted = oracle(name, tokens)
    for cuts in ([CHUNK] * (count // CHUNK), [5] * (count // 5), [1] * count):
        found = divergence(wanted[: sum(cuts)], answers(network, tokens, cuts))
        # A rounded activation that lies between two integers may fall to either side: one position of BitNet's.
        assert np.median(found) < 1e-9
        assert found.mean() < (1e-3 if rounds else 1e-9)


@emulated
@pytest.mark.parametrize("name", ON_EMULATOR)
def test_an_npu_computes_in_float16_what_the_oracle_does(written: Written, name: str) -> None:
    network = Network(written(name, "f16"), lambda file: qnn.open_on_npu(file, 1, EMULATOR, {}), EMULATOR)
    with open_checkpoint(GOLDENS / name) as model:
        tokens, rounds = some_tokens(model.decoder, 3 * CHUNK), model.decoder.int8_activations
    wanted = oracle(name, tokens)
    bound = 1e-2 if rounds else 1e-4  # the gate for float16; which way 8 bits are rounded is decided by less
    assert network.placement().operators == {EMULATOR: 1.0}
    assert divergence(wanted, answers(network, tokens, [CHUNK] * 3)).mean() < bound
    assert divergence(wanted, answers(network, tokens, [CHUNK, 3, *[1] * 5, CHUNK])).mean() < bound


def test_both_graphs_read_the_same_bytes(written: Written) -> None:
    """So that a chip has the weights once."""
    folder = written("multi-head-untied-bf16", "f16")

    def places(name: str) -> dict[str, dict[str, str]]:
        model = onnx.load(folder / name, load_external_data=False)
        return {
            tensor.name: {entry.key: entry.value for entry in tensor.external_data}
            for tensor in model.graph.initializer
            if tensor.data_location == onnx.TensorProto.EXTERNAL
        }

    prefill, decode = places(htp_folder.PREFILL), places(htp_folder.DECODE)
    assert prefill == decode
    with open_checkpoint(GOLDENS / "multi-head-untied-bf16") as model:
        assert prefill.keys() == model.tensors.keys() - {"model.embed_tokens.weight"}
        table = np.memmap(folder / htp_folder.EMBEDDING, np.float16, "r")
        assert np.array_equal(table, model.tensors["model.embed_tokens.weight"].read().astype(np.float16).reshape(-1))


def test_a_tied_head_reads_the_table_that_tokens_are_looked_up_in(written: Written) -> None:
    folder = written("grouped-query-tied", "f16")
    model = onnx.load(folder / htp_folder.DECODE, load_external_data=False)
    head = next(tensor for tensor in model.graph.initializer if tensor.name == "model.embed_tokens.weight")
    assert {entry.key: entry.value for entry in head.external_data}["location"] == htp_folder.EMBEDDING


def test_nothing_of_a_graph_is_dynamic_and_no_norm_has_more_than_two_axes(written: Written) -> None:
    """Of more, the compiler for Hexagon makes another computation, in silence."""
    folder = written("qwen3-tied", "f16")
    for name in (htp_folder.PREFILL, htp_folder.DECODE):
        model = onnx.shape_inference.infer_shapes(onnx.load(folder / name), strict_mode=True, data_prop=True)
        ports = [*model.graph.input, *model.graph.output, *model.graph.value_info]
        shapes = {port.name: [size.dim_value for size in port.type.tensor_type.shape.dim] for port in ports}
        assert all(size > 0 for shape in shapes.values() for size in shape)
        norms = [node for node in model.graph.node if node.op_type == "RMSNormalization"]
        assert len(norms) == 4 * 2 + 1
        assert all(len(shapes[node.input[0]]) == 2 for node in norms)


def test_longrope_turns_the_whole_of_a_long_text_by_its_other_frequencies(written: Written) -> None:
    name = "phi3-longrope-partial"
    network = on_cpu(written(name, "f32"))
    border = network.description.long_after
    with open_checkpoint(GOLDENS / name) as model:
        tokens = some_tokens(model.decoder, border + 3)
    ids = network.checked(tokens)
    assert network.append(ids[:border], 0).shape == (network.vocab_size,)
    assert network.usable(border, border + 1) == 0
    wanted = oracle(name, tokens[: border + 1])[-1:]
    assert divergence(wanted, network.append(ids[: border + 1], 0)[None]).max() < 1e-9
    assert network.usable(border + 1, border + 3) == border + 1
    wanted = oracle(name, tokens)[-1:]
    assert divergence(wanted, network.append(ids[border + 1 :], border + 1)[None]).max() < 1e-9
    assert network.usable(border, border) == 0
