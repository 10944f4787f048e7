"""The graph answers what the oracle does, for every field of the neutral model, and OpenVINO fuses what it should."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgecore.checkpoint import Decoder, Oracle, open_checkpoint
from edgecore.contract import no_progress
from edgecore_openvino import graph, ir_file

from support.bare_ir import Floats, Model, divergence, some_tokens
from support.tiny import tiny_llama

GOLDENS = Path(__file__).parents[3] / "tests/checkpoint/goldens"
NAMES = sorted(path.parent.name for path in GOLDENS.glob("*/golden.npz"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], tuple[Decoder, Model]]:
    def call(folder: Path) -> tuple[Decoder, Model]:
        xml = tmp_path_factory.mktemp("ir") / "model.xml"
        with open_checkpoint(folder) as model:
            ir_file.write(graph.build(model.decoder, "f32"), model, xml, no_progress)
            return model.decoder, Model(xml)

    return call


def oracle(folder: Path, tokens: Sequence[int]) -> Floats:
    with open_checkpoint(folder) as model:
        return np.concatenate(list(Oracle(model.decoder, model.tensors).score(tokens)))


@pytest.fixture(scope="module", params=NAMES)
def golden(
    request: pytest.FixtureRequest, made: Callable[[Path], tuple[Decoder, Model]]
) -> tuple[Path, Decoder, Model]:
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


def test_every_family_is_fused(golden: tuple[Path, Decoder, Model]) -> None:
    """Counts are those of optimum-intel's exports. Not fused: attention with a soft cap, which is no operation."""
    _, d, model = golden
    norms = 2 + 2 * d.query_key_norm + 2 * d.post_norms + 2 * d.sub_norms
    layers = model.layers()
    assert layers["ScaledDotProductAttention"] == (0 if d.attention_softcap else d.layers)
    assert layers["RoPE"] == 2 * d.layers
    assert layers["RMS"] == norms * d.layers + 1
    assert layers["FullyConnected"] == 7 * d.layers + 1
    assert layers["MemoryInput"] == layers["MemoryOutput"] == 2 * d.layers


def test_longropes_second_set_is_chosen_by_the_length_of_the_text(
    made: Callable[[Path], tuple[Decoder, Model]],
) -> None:
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


@pytest.mark.parametrize("name", ["grouped-query-tied", "mistral-window", "gemma3-old-style"])
def test_texts_of_a_batch_do_not_see_each_other_nor_the_padding(
    made: Callable[[Path], tuple[Decoder, Model]], name: str
) -> None:
    decoder, model = made(GOLDENS / name)
    long, short = some_tokens(decoder, 24), some_tokens(decoder, 30)[11:]
    padding = len(long) - len(short)
    mask = np.ones((2, len(long)), np.int64)
    mask[1, :padding] = 0
    together = model.call([long, [0] * padding + short], 0, mask)
    after = model.call([[3], [3]], len(long), np.pad(mask, ((0, 0), (0, 1)), constant_values=1))
    alone = model.logits([*long, 3], [len(long), 1])
    assert divergence(alone[:-1], together[0]).max() < 1e-8
    assert divergence(alone[-1:], after[0]).max() < 1e-8
    alone = model.logits([*short, 3], [len(short), 1])
    assert divergence(alone[:-1], together[1, padding:]).max() < 1e-8
    assert divergence(alone[-1:], after[1]).max() < 1e-8


def test_beam_indices_choose_whose_past_goes_on(made: Callable[[Path], tuple[Decoder, Model]]) -> None:
    decoder, model = made(GOLDENS / "qwen3-tied")
    first, second = some_tokens(decoder, 8), some_tokens(decoder, 16)[8:]
    model.call([first, second], 0)
    swapped = model.call([[5], [5]], 8, beams=[1, 0])
    assert divergence(model.logits([*second, 5], [9])[-1:], swapped[0]).max() < 1e-8
    assert divergence(model.logits([*first, 5], [9])[-1:], swapped[1]).max() < 1e-8


def test_inputs_outputs_and_state_have_the_names_that_openvino_genai_knows(tmp_path: Path) -> None:
    with open_checkpoint(tiny_llama(tmp_path / "hf")) as model:
        built = graph.build(model.decoder, "f16")
    inputs = {port.any_name: (port.get_element_type().get_type_name(), port.partial_shape) for port in built.inputs}
    known = {name: (kind, str(shape)) for name, (kind, shape) in inputs.items() if not name.endswith(".weight")}
    assert known == {
        "input_ids": ("i64", "[?,?]"),
        "attention_mask": ("i64", "[?,?]"),
        "position_ids": ("i64", "[?,?]"),
        "beam_idx": ("i32", "[?]"),
    }
    assert [port.any_name for port in built.outputs] == ["logits"]
    assert str(built.output("logits").partial_shape) == "[?,?,512]"
    assert {variable.info.variable_id for variable in built.get_variables()} == {
        f"past_key_values.{layer}.{kind}present.{layer}.{kind}" for layer in (0, 1) for kind in ("key", "value")
    }
