"""The fixture in every form that people publish models in, whole and damaged, each in a folder that may be spoilt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint import Checkpoint, open_checkpoint
from edgecore_conformance.bench import Bench
from edgecore_conformance.known import TRAINED

FAULTS = {
    "huggingface": ("truncated", "nan", "shape", "index", "header", "config"),
    "gguf": ("truncated", "nan", "header", "magic"),
    "onnx": ("truncated", "header", "empty"),
}
"""Damage by kind of source; what each is stands in `damage`."""


def source(bench: Bench, kind: str, fixture: str = TRAINED) -> Path:
    """A copy that belongs to this row alone, so that a plugin that writes into it spoils nothing."""
    folder = bench.folder(f"source-{kind}")
    if kind == "onnx":
        from edgecore_conformance import fixtures

        return Path(shutil.copyfile(fixtures.classifier().model, folder / "model.onnx"))
    published = bench.known.fixture(fixture)
    if kind == "huggingface":
        return Path(shutil.copytree(published, folder / published.name, copy_function=shutil.copyfile))
    with open_checkpoint(published) as model:
        return write_gguf(model, folder / f"{published.name}.gguf")


def write_gguf(model: Checkpoint, out: Path) -> Path:
    """The llama-style fixture as GGUF in float32, by the `gguf` package and with the keys of llama.cpp's converter: no
    plugin under test has a hand in it."""
    d, tokenizer = model.decoder, model.tokenizer
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_name(model.name)
    writer.add_block_count(d.layers)
    writer.add_context_length(d.context_length)
    writer.add_embedding_length(d.hidden_size)
    writer.add_feed_forward_length(d.intermediate_size)
    writer.add_head_count(d.heads)
    writer.add_head_count_kv(d.kv_heads)
    writer.add_key_length(d.head_dim)
    writer.add_value_length(d.head_dim)
    writer.add_layer_norm_rms_eps(d.norm_epsilon)
    writer.add_rope_freq_base(d.rope.theta)
    writer.add_rope_dimension_count(d.rope.dim)
    writer.add_vocab_size(d.vocab_size)
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types([int(kind) for kind in tokenizer.types])
    if tokenizer.merges:
        writer.add_token_merges(list(tokenizer.merges))
    if tokenizer.scores:
        writer.add_token_scores(list(tokenizer.scores))
    roles = {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "unknown": writer.add_unk_token_id,
             "padding": writer.add_pad_token_id}  # fmt: skip
    for role, token in tokenizer.special.items():
        if role in roles:
            roles[role](token)
    writer.add_add_bos_token(tokenizer.add_bos)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, d.layers)
    for name, tensor in model.tensors.items():
        data = tensor.read()
        if ".q_proj." in name or ".k_proj." in name:
            data = _interleave(data, d.heads if ".q_proj." in name else d.kv_heads)
        stem, _, kind = name.rpartition(".")
        writer.add_tensor(f"{names[stem]}.{kind}", np.ascontiguousarray(data, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _interleave(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """What llama.cpp's converter does to q and k (`LlamaModel.permute`)."""
    rows = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, rows, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def damage(path: Path, kind: str, fault: str) -> Path:
    """The same source with one fault; answers what convert is given.

    truncated  the weights end in the middle           header  the first bytes are others
    nan        one weight is not a number               magic   it is some other kind of file
    shape      a matrix is said to lie the other way    config  the config is half a file
    index      the index names a shard that is missing  empty   there is nothing in it
    """
    weights = path / "model.safetensors" if kind == "huggingface" else path
    match fault:
        case "truncated":
            whole = weights.read_bytes()
            weights.write_bytes(whole[: len(whole) * 2 // 3])
        case "nan":
            _poison(weights, kind)
        case "shape":
            _turn(weights)
        case "index":
            names = list(_header(weights)[0])
            where = dict.fromkeys(names, "model-00001-of-00002.safetensors")
            where[names[-1]] = "model-00002-of-00002.safetensors"
            (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
            weights.rename(path / "model-00001-of-00002.safetensors")
        case "config":
            text = (path / "config.json").read_text(encoding="utf-8")
            (path / "config.json").write_text(text[: len(text) // 2], encoding="utf-8")
        case "magic":
            weights.write_bytes(b"PK\x03\x04" + weights.read_bytes()[4:])
        case "empty":
            weights.write_bytes(b"")
        case _:  # header
            data = bytearray(weights.read_bytes())
            data[8:72] = bytes(255 - b for b in data[8:72])
            weights.write_bytes(bytes(data))
    return path


ODD = " \u00e4\u4e2d"
"""Ends names of folders as people have them: a space, letters beyond ASCII's."""


def moved(bench: Bench, path: Path) -> Path:
    """It lies elsewhere now, under another name."""
    return path.rename(bench.folder(f"moved{ODD}") / f"it{ODD}{path.suffix}")


def shard(path: Path, count: int) -> None:
    """A Hugging Face folder's weights in `count` files and an index, as large models are published."""
    weights = path / "model.safetensors"
    tensors, start = _header(weights)
    data = weights.read_bytes()[start:]
    where: dict[str, str] = {}
    names = list(tensors)
    for number in range(count):
        mine = names[number * len(names) // count : (number + 1) * len(names) // count]
        header, parts, at = {}, [], 0
        for name in mine:
            begin, end = tensors[name]["data_offsets"]
            header[name] = {**tensors[name], "data_offsets": [at, at + end - begin]}
            parts.append(data[begin:end])
            at += end - begin
        file = path / f"model-{number + 1:05}-of-{count:05}.safetensors"
        where |= dict.fromkeys(mine, file.name)
        said = json.dumps(header).encode()
        said += b" " * (-len(said) % 8)
        file.write_bytes(len(said).to_bytes(8, "little") + said + b"".join(parts))
    index = {"metadata": {"total_size": len(data)}, "weight_map": where}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    weights.unlink()


def _poison(weights: Path, kind: str) -> None:
    """Sixteen bytes of ones in the middle of a matrix: NaN in every float format."""
    data = bytearray(weights.read_bytes())
    if kind == "huggingface":
        tensors, start = _header(weights)
        begin, end = next(t["data_offsets"] for t in tensors.values() if len(t["shape"]) == 2)
        at = start + (begin + end) // 2 // 16 * 16
    else:
        at = len(data) * 3 // 4 // 16 * 16
    data[at : at + 16] = b"\xff" * 16
    weights.write_bytes(bytes(data))


def _turn(weights: Path) -> None:
    """The first matrix that is not square, its two sizes exchanged in the header."""
    tensors, start = _header(weights)
    data = weights.read_bytes()
    name = next(n for n, t in tensors.items() if len(t["shape"]) == 2 and t["shape"][0] != t["shape"][1])
    tensors[name]["shape"].reverse()
    header = json.dumps(tensors).encode()
    header += b" " * (-len(header) % 8)
    weights.write_bytes(len(header).to_bytes(8, "little") + header + data[start:])


def _header(weights: Path) -> tuple[dict[str, Any], int]:
    """Tensors of a safetensors file, and where their data begin."""
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        tensors: dict[str, Any] = json.loads(file.read(length))
    tensors.pop("__metadata__", None)
    return tensors, 8 + length
