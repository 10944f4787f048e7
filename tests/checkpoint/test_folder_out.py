"""What is written as a Hugging Face folder is the model that was read: the same config, the same weights, bit for bit.

That transformers agrees is recorded in folders.json, by check_folders.py, which needs torch and runs by hand.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from edgecore.checkpoint import Checkpoint, Oracle, Rope, open_checkpoint, write_folder
from edgecore.checkpoint.decoder import RopeScaling
from edgecore.checkpoint.families import known
from edgecore.checkpoint.families.written import as_rule, rope_scaling
from edgecore.checkpoint.fields import Fields
from edgecore.checkpoint.folder_out import decoder_config
from edgecore.contract.artifacts import Made
from edgecore.contract.errors import CorruptModel, UnsupportedModel, UnsupportedPrecision

from support.gguf_files import write_gguf
from support.tiny import tiny_llama

HERE = Path(__file__).parent
GOLDENS = sorted(path.parent for path in (HERE / "goldens").glob("*/golden.npz"))
RECORD = json.loads((HERE / "folders.json").read_text())
FAMILIES = {family.name: family for family in known()}
each_golden = pytest.mark.parametrize("golden", GOLDENS, ids=lambda folder: folder.name)


def logits(model: Checkpoint) -> np.ndarray:
    tokens = np.random.default_rng(0).integers(0, model.decoder.vocab_size, 40)
    return np.concatenate(list(Oracle(model.decoder, model.tensors).score(tokens)))


def folder_logits(folder: Path) -> np.ndarray:
    with open_checkpoint(folder) as model:
        return logits(model)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., tuple[Path, Made]]:
    def call(source: Path, precision: str = "f32", vectors: str = "f32") -> tuple[Path, Made]:
        out = tmp_path / f"out-{precision}"
        out.mkdir()
        with open_checkpoint(source) as model:
            return out, write_folder(model, out, precision, vectors=vectors)

    return call


@each_golden
def test_a_config_that_was_written_describes_the_decoder_that_it_was_written_from(golden: Path) -> None:
    with open_checkpoint(golden) as model:
        written = json.loads(json.dumps(decoder_config(model.decoder)))
        again = FAMILIES[model.decoder.family].from_config(Fields(golden / "config.json", written))
        assert again == model.decoder


@each_golden
def test_the_config_is_the_one_that_transformers_agreed_with(
    golden: Path, write: Callable[..., tuple[Path, Made]]
) -> None:
    out, _ = write(golden)
    assert json.loads((out / "config.json").read_text()) == RECORD[golden.name]["config"]
    assert RECORD[golden.name]["logits"] < 1e-4
    assert RECORD[golden.name]["ids"] == "equal"


@each_golden
def test_the_weights_of_a_folder_compute_the_same_bits(golden: Path, write: Callable[..., tuple[Path, Made]]) -> None:
    out, _ = write(golden)
    assert np.array_equal(folder_logits(out), folder_logits(golden))


@each_golden
def test_in_the_sources_own_type_nothing_is_rounded(golden: Path, write: Callable[..., tuple[Path, Made]]) -> None:
    with open_checkpoint(golden) as model:
        own = {"F16": "f16", "BF16": "bf16"}[next(kind for kind in model.storage if kind in ("F16", "BF16"))]
    out, made = write(golden, own, "same")
    assert np.array_equal(folder_logits(out), folder_logits(golden))
    assert made.weights is not None
    assert made.weights.bits_per_weight <= 16.01


@each_golden
@pytest.mark.parametrize("storage", ["F32", "Q8_0"])
def test_a_gguf_file_becomes_a_folder_that_computes_the_same(
    tmp_path: Path, golden: Path, write: Callable[..., tuple[Path, Made]], storage: str
) -> None:
    with open_checkpoint(golden) as model:
        source = write_gguf(model, tmp_path / "model.gguf", storage, tokenizer=False)
        scaling = model.decoder.rope.scaling
    out, made = write(source)
    if scaling in (RopeScaling.LLAMA3, RopeScaling.LONGROPE):  # float32 in the file, a rule in the config
        assert np.abs(folder_logits(out) - folder_logits(source)).max() < 1e-4
    else:
        assert np.array_equal(folder_logits(out), folder_logits(source))
    assert any("dequantized from Q8_0" in note for note in made.notes) == (storage == "Q8_0")


@each_golden
def test_tensors_have_the_names_shapes_and_types_of_the_familys_own_folders(
    golden: Path, write: Callable[..., tuple[Path, Made]]
) -> None:
    files = [*golden.glob("*.safetensors")]
    source = {name: array for file in files for name, array in load_file(file).items()}
    out, _ = write(golden)
    written = load_file(out / "model.safetensors")
    assert {n for n in source if "inv_freq" not in n} - {n for n in written if n.endswith("_scale")} <= set(written)
    for name, array in source.items():
        if written[name].dtype != np.uint8 and not name.endswith("_scale") and "bitnet" not in golden.name:
            assert np.array_equal(written[name], array.astype(np.float32)), name


@pytest.mark.parametrize("storage", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4", "BF16", "F16"])
def test_what_a_gguf_type_dequantizes_to_is_what_stands_in_float32(
    tmp_path: Path, write: Callable[..., tuple[Path, Made]], storage: str
) -> None:
    with open_checkpoint(tiny_llama(tmp_path / "tiny", dtype="F32")) as model:
        source = write_gguf(model, tmp_path / "model.gguf", storage, tokenizer=False)
    out, _ = write(source)
    written = load_file(out / "model.safetensors")
    with open_checkpoint(source) as model:
        assert storage in model.storage
        for name, tensor in model.tensors.items():
            assert written[name].tobytes() == tensor.read().tobytes(), name


def test_ternary_weights_are_packed_and_plain_ones_are_not(write: Callable[..., tuple[Path, Made]]) -> None:
    out, _ = write(HERE / "goldens/bitnet-unpacked", "bf16")
    tensors = load_file(out / "model.safetensors")
    assert tensors["model.layers.0.mlp.up_proj.weight"].dtype == np.uint8
    assert tensors["model.layers.0.mlp.up_proj.weight_scale"].shape == (1,)
    assert tensors["model.embed_tokens.weight"].dtype == ml_dtypes.bfloat16


def test_weights_that_activations_round_for_and_that_are_not_ternary_stay_as_they_are(
    tmp_path: Path, write: Callable[..., tuple[Path, Made]]
) -> None:
    from safetensors.numpy import save_file

    golden = HERE / "goldens/bitnet-unpacked"
    weights = dict(load_file(golden / "model.safetensors"))
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name] * np.linspace(1, 2, weights[name].shape[1]).astype(weights[name].dtype)
    (tmp_path / "in").mkdir()
    save_file(weights, tmp_path / "in/model.safetensors")
    (tmp_path / "in/config.json").write_bytes((golden / "config.json").read_bytes())
    out, _ = write(tmp_path / "in")
    assert load_file(out / "model.safetensors")[name].dtype == np.float32
    assert np.array_equal(folder_logits(out), folder_logits(tmp_path / "in"))


def test_memory_does_not_grow_with_a_tensor(tmp_path: Path, write: Callable[..., tuple[Path, Made]]) -> None:
    """A matrix of 64 MB in float32 goes through in pieces."""
    source = tiny_llama(tmp_path / "source", layers=1, hidden=1024, intermediate=16384, heads=4)
    tracemalloc.start()
    try:
        write(source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30e6


def test_a_number_that_the_type_cannot_hold_is_refused_by_name(
    tmp_path: Path, write: Callable[..., tuple[Path, Made]]
) -> None:
    from safetensors.numpy import save_file

    source = tiny_llama(tmp_path / "source", dtype="F32")
    weights = load_file(source / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(weights, source / "model.safetensors")
    with pytest.raises(UnsupportedPrecision, match=r"layers\.0\.mlp\.up_proj"):
        write(source, "f16")
    with pytest.raises(UnsupportedPrecision, match="f64"):
        write(source, "f64")


def test_a_tokenizer_that_is_a_link_to_the_users_own_file_is_not_copied(
    tmp_path: Path, write: Callable[..., tuple[Path, Made]]
) -> None:
    source = tiny_llama(tmp_path / "source")
    (tmp_path / "secret.json").write_text('{"key": 1}')
    (source / "special_tokens_map.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(CorruptModel, match="link out of the folder"):
        write(source)


def test_biases_that_a_config_cannot_say_are_refused() -> None:
    with (
        open_checkpoint(HERE / "goldens/biases-new-style-config") as model,
        pytest.raises(UnsupportedModel, match="bias"),
    ):
        decoder_config(replace(model.decoder, output_bias=False))


@pytest.mark.parametrize("original", [32, 8192, 1000])
@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_divisors_of_a_gguf_file_become_llama3s_rule_again(original: int, factor: float) -> None:
    rule = Rope(500000.0, 64, RopeScaling.LLAMA3, factor=factor, original_context=original)
    kept = tuple(float(d) for d in rule.frequency_divisors().astype(np.float32))
    found = as_rule(Rope(500000.0, 64, RopeScaling.DIVISORS, divisors=kept), 4096)
    assert (found.scaling, found.factor) == (RopeScaling.LLAMA3, factor)
    np.testing.assert_allclose(found.frequencies(), rule.frequencies(), rtol=1e-5)


def test_divisors_that_follow_no_rule_are_kept_one_by_one() -> None:
    rope = Rope(10000.0, 8, RopeScaling.DIVISORS, divisors=(1.0, 3.0, 2.0, 7.0))
    found = as_rule(rope, 4096)
    for positions in (10, 10000):
        assert np.array_equal(found.frequencies(positions), rope.frequencies(positions))
    assert rope_scaling(rope, 4096) == {
        "type": "longrope",
        "short_factor": [1.0, 3.0, 2.0, 7.0],
        "long_factor": [1.0, 3.0, 2.0, 7.0],
    }
