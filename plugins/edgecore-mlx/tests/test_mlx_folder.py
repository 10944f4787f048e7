"""A folder is read from its headers, and believed after a look at all of them; it is written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgecore.checkpoint import open_checkpoint
from edgecore.checkpoint.fields import Fields
from edgecore.checkpoint.safetensors_out import array
from edgecore.contract import CorruptModel, ModelNotFound, PayloadFile, UnsupportedModel, no_progress
from edgecore_mlx import folder, packing
from edgecore_mlx.recipe import Packing

from support.gguf_files import write_gguf
from support.tiny import CHAT_TEMPLATE, tiny_llama

PROMPT = "The keeper wrote 12.50 in the book:"
MESSAGES = [{"role": "user", "content": "What is the sea?"}]


@pytest.fixture
def made(tiny_mlx: Any, tmp_path: Path) -> Path:
    """A converted folder that may be changed."""
    return Path(shutil.copytree(tiny_mlx.path, tmp_path / "made"))


def entries(count: int, size: int = 100) -> list[folder.Entry]:
    return [array(f"model.layers.{n}.weight", "F32", np.full((size,), n, np.float32)) for n in range(count)]


@pytest.mark.parametrize("kind", ["huggingface", "gguf"])
def test_everything_but_weights_and_config_is_written_beside(kind: str, tiny: Path, tmp_path: Path) -> None:
    source, out = tiny, tmp_path / "out"
    out.mkdir()
    if kind == "gguf":
        with open_checkpoint(tiny) as model:
            source = write_gguf(model, tmp_path / "tiny.gguf")
    with open_checkpoint(source) as model:
        files, notes = folder.write_beside(model, out)
        assert notes == []
        assert sorted(file.path for file in files) == sorted(p.name for p in out.iterdir())
        shutil.copyfile(tiny / "config.json", out / "config.json")
        ours, theirs = folder.open_tokenizer(out), model.tokenizer
        assert ours.vocabulary.tokens == theirs.vocabulary.tokens
        assert ours.vocabulary.eos_ids == theirs.vocabulary.eos_ids
        assert ours.encode(PROMPT) == theirs.encode(PROMPT)
        assert ours.encode_chat(MESSAGES) == theirs.encode_chat(MESSAGES)
    assert (out / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [2, 0]


def test_a_source_without_a_tokenizer_gives_a_folder_that_says_so(mlx: Any, tiny: Path, tmp_path: Path) -> None:
    with open_checkpoint(tiny) as model:
        source = write_gguf(model, tmp_path / "bare.gguf", tokenizer=False)
    found = mlx.convert(source, tmp_path / "out")
    assert found.notes[-1] == folder.NO_TOKENIZER
    assert [file.path for file in found.files] == [folder.MODEL, folder.INDEX, folder.CONFIG]
    with pytest.raises(ModelNotFound, match=r"tokenizer\.json"):
        folder.open_tokenizer(tmp_path / "out")


def test_what_is_beside_the_weights_is_copied_with_its_roles(made: Path, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    copied = folder.copy_beside(made, tmp_path / "two")
    assert {file.path for file in copied} == {p.name for p in made.iterdir()} - {
        folder.MODEL,
        folder.INDEX,
        folder.CONFIG,
    }
    assert PayloadFile("tokenizer.json", "tokenizer") in copied


def test_arrays_are_read_as_they_lie_there(made: Path) -> None:
    stored = folder.tensors(made)
    with open_checkpoint(made) as model:
        assert stored.keys() == model.tensors.keys()
    norm = stored["model.norm.weight"]
    assert (norm.name, norm.dtype, norm.shape, norm.nbytes) == ("model.norm.weight", "F16", (256,), 512)
    assert norm.read().dtype == np.float16
    assert not norm.read().flags.writeable
    assert np.array_equal(norm.read(), load_file(made / folder.MODEL)["model.norm.weight"])


def test_files_are_split_at_the_limit_and_the_index_says_what_is_where(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    files = folder.write(
        tmp_path, entries(5), {"a": 1}, 500, lambda done, total, stage="": seen.append((done, total)), limit=900
    )
    names = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert [file.path for file in files] == [*names, folder.INDEX, folder.CONFIG]
    assert seen == sorted(seen)
    assert seen[-1] == (2000, 2000)
    index = json.loads((tmp_path / folder.INDEX).read_text())
    assert index["metadata"] == {"total_size": 2000, "total_parameters": 500}
    assert sorted(index["weight_map"].values()) == [names[0], names[0], names[1], names[1], names[2]]
    assert [int(s.read()[0]) for _, s in sorted(folder.tensors(tmp_path).items())] == [0, 1, 2, 3, 4]


def test_an_array_larger_than_the_limit_has_a_file_of_its_own(tmp_path: Path) -> None:
    folder.write(tmp_path, [*entries(1), *entries(3, 300)[1:]], {}, 0, no_progress, limit=500)
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3


def test_an_array_that_fails_leaves_nothing_of_any_file(tmp_path: Path) -> None:
    def pieces() -> Iterator[Any]:
        raise CorruptModel("no number")

    with pytest.raises(CorruptModel, match="no number"):
        folder.write(tmp_path, [*entries(3), folder.Entry("x", "F32", (1,), pieces)], {}, 0, no_progress, limit=400)
    assert not list(tmp_path.iterdir())


def shard(path: Path) -> Path:
    return tiny_llama(path, shards=3)


def test_a_folder_without_an_index_is_read_as_mlx_lm_reads_it(tmp_path: Path) -> None:
    source = shard(tmp_path / "hf")
    whole = folder.tensors(source)
    (source / folder.INDEX).unlink()
    assert folder.tensors(source).keys() == whole.keys()
    folder.check_folder(source)


def test_an_index_that_says_otherwise_than_the_files_is_corrupt(tmp_path: Path) -> None:
    source = shard(tmp_path / "hf")
    index = source / folder.INDEX
    text = index.read_text()
    first = "model-00001-of-00003.safetensors"

    def says(change: Any) -> None:
        said = json.loads(text)
        change(said["weight_map"])
        index.write_text(json.dumps(said))

    says(lambda m: m.update({"model.norm.weight": first}))
    with pytest.raises(CorruptModel, match=rf"model\.norm\.weight': {folder.INDEX} says it is in {first}"):
        folder.check_folder(source)
    says(lambda m: m.pop("model.norm.weight"))
    with pytest.raises(CorruptModel, match=r"model\.norm\.weight': model.safetensors.index.json does not name it"):
        folder.check_folder(source)
    says(lambda m: m.update({"model.extra.weight": first}))
    with pytest.raises(CorruptModel, match=r"'model\.extra\.weight': missing, though"):
        folder.check_folder(source)
    says(lambda m: m.update({"model.extra.weight": "other.safetensors"}))
    with pytest.raises(CorruptModel, match=r"other\.safetensors: no such file"):
        folder.check_folder(source)
    says(lambda m: m.update({"model.extra.weight": "../other.safetensors"}))
    with pytest.raises(CorruptModel, match="is not the name of a file in this folder"):
        folder.check_folder(source)
    index.write_text("{")
    with pytest.raises(CorruptModel, match="is not JSON"):
        folder.check_folder(source)


def test_a_shard_that_is_missing_cut_short_or_there_twice_is_corrupt(tmp_path: Path) -> None:
    source = shard(tmp_path / "hf")
    file = source / "model-00002-of-00003.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-100])
    with pytest.raises(CorruptModel, match="the file was cut short"):
        folder.check_folder(source)
    file.unlink()
    with pytest.raises(CorruptModel, match=r"model-00002-of-00003\.safetensors: no such file"):
        folder.check_folder(source)
    file.write_bytes(data)
    (source / "model-copy.safetensors").write_bytes(data)
    with pytest.raises(CorruptModel, match=r"does not name it|stands in another file too"):
        folder.check_folder(source)


def test_a_folder_without_weights_or_config_is_not_found(made: Path) -> None:
    (made / folder.CONFIG).unlink()
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        folder.check_folder(made)
    (made / folder.INDEX).unlink()
    (made / folder.MODEL).unlink()
    with pytest.raises(ModelNotFound, match="no weights"):
        folder.check_folder(made)


def test_a_weight_that_is_no_number_is_corrupt_when_it_is_read(made: Path) -> None:
    weights = load_file(made / folder.MODEL)
    weights["model.norm.weight"][7] = np.inf
    save_file(weights, made / folder.MODEL)
    with pytest.raises(CorruptModel, match=r"model\.norm\.weight"):
        folder.tensors(made)["model.norm.weight"].read()


def test_code_that_came_with_a_model_is_never_run_and_refused_where_it_would_be_needed(made: Path) -> None:
    config = json.loads((made / folder.CONFIG).read_text())

    def says(**more: Any) -> None:
        (made / folder.CONFIG).write_text(json.dumps(config | more))

    (made / "modeling_own.py").write_text("raise SystemExit(7)")
    says(auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    folder.check_folder(made)  # Phi-3's folders have it, and nobody needs it: edgecore computes the family
    says(auto_map={"AutoModelForCausalLM": "modeling_own.Own"}, model_type="stablelm")
    folder.check_folder(made)  # nor mlx_lm's architectures
    says(auto_map={"AutoModelForCausalLM": "modeling_own.Own"}, model_type="own")
    with pytest.raises(UnsupportedModel, match="'auto_map': 'own' needs code of its own, which is never run"):
        folder.check_folder(made)
    says(model_type="../own", auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    with pytest.raises(UnsupportedModel, match="never run"):
        folder.check_folder(made)
    says(model_file="modeling_own.py")
    with pytest.raises(UnsupportedModel, match=r"'model_file': 'modeling_own\.py' is code that came with the model"):
        folder.check_folder(made)


def said(**config: Any) -> packing.Quantization:
    return folder.quantization(Fields(Path("config.json"), config))


class Shape:
    def __init__(self, dtype: str, *shape: int) -> None:
        self.dtype, self.shape = dtype, shape


def packed(bits: int, group: int, columns: int = 256, scales: str = "F16") -> dict[str, Any]:
    return {"a.weight": Shape("U32", 8, columns * bits // 32), "a.scales": Shape(scales, 8, columns // group)}


def test_config_says_how_matrices_are_packed_by_module() -> None:
    found = said(quantization={"group_size": 64, "bits": 4, "b": {"group_size": 32, "bits": 8}, "c": False, "d": True})
    assert found.default == Packing(4, 64)
    assert found.named == {"b": Packing(8, 32), "c": None, "d": Packing(4, 64)}
    assert said().default is None
    assert said(quantization_config={"quant_method": "bitnet"}).default is None
    assert said(quantization_config={"quant_method": "mxfp4"}).default == Packing(4, 32, "mxfp4")
    assert said(quantization_config={"bits": 4, "group_size": 32, "mode": "mxfp4"}).default == Packing(4, 32, "mxfp4")


def test_of_a_module_what_config_leaves_open_is_as_mlx_has_it() -> None:
    theirs = {"group_size": None, "bits": 6, "mode": "affine"}  # mlx_lm.convert --quant-predicate mixed_4_6
    found = said(
        quantization={"group_size": 64, "bits": 4, "a": theirs, "b": {"mode": "mxfp8"}, "c": {"mode": "nvfp4"}}
    )
    assert found.named == {"a": Packing(6, 64), "b": Packing(8, 32, "mxfp8"), "c": Packing(4, 16, "nvfp4")}
    assert found.of("a", packed(6, 64), 256) == Packing(6, 64)


def test_what_config_does_not_say_rightly_of_a_matrix_its_arrays_tell() -> None:
    found = said(quantization={"group_size": 64, "bits": 4})
    assert found.of("a", packed(4, 64)) == Packing(4, 64)
    assert found.of("a", {"a.weight": Shape("F16", 8, 256)}) is None
    assert found.of("a", packed(8, 32), 256) == Packing(8, 32)
    assert found.of("a", packed(5, 32)) == Packing(5, 32)
    assert found.of("a", packed(4, 16, scales="U8")) == Packing(4, 16, "nvfp4")
    assert found.of("a", packed(8, 32, scales="U8")) == Packing(8, 32, "mxfp8")
    with pytest.raises(CorruptModel, match=r"a\.weight.* is not 4 bits in groups of 64, affine$"):
        found.of("a", packed(7, 32))
    with pytest.raises(CorruptModel, match=r"a\.weight.* is not packed in one known way$"):
        said().of("a", packed(7, 32))
    with pytest.raises(CorruptModel, match=r"a\.scales': is missing"):
        said(quantization={"group_size": 64, "bits": 4, "a": {"group_size": 32, "bits": 8}}).of("a", {})


def test_packing_that_is_not_mlxs_is_refused_with_what_is() -> None:
    with pytest.raises(UnsupportedModel, match="packed by 'awq'") as caught:
        said(quantization_config={"quant_method": "awq", "bits": 4})
    assert "mlx_lm.convert" in caught.value.hint
    with pytest.raises(UnsupportedModel, match="7 bits in groups of 64"):
        said(quantization={"group_size": 64, "bits": 7})
    with pytest.raises(UnsupportedModel, match="'mode': 'other'"):
        said(quantization={"group_size": 64, "bits": 4, "mode": "other"})
    with pytest.raises(CorruptModel, match="group_size"):
        said(quantization={"bits": 4})


def test_the_commonest_packing_is_said_for_all_and_the_others_by_name() -> None:
    four, eight = Packing(4, 32), Packing(8, 32)
    config = folder.with_quantization({"x": 1}, {"a": four, "b": eight, "c": four})
    assert config["quantization"] == config["quantization_config"] == four.config() | {"b": eight.config()}
    assert folder.with_quantization({"x": 1}, {}) == {"x": 1}
    ternary = {"quantization_config": {"quant_method": "bitnet"}}
    assert folder.with_quantization(ternary, {"a": four})["quantization_config"] == {"quant_method": "bitnet"}
