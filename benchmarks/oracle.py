"""What the oracle costs: seconds for 256 tokens of a small model, and memory for a model of 3.8 billion parameters.

    python benchmarks/oracle.py MODEL             # seconds, cold and warm, and peak memory
    python benchmarks/oracle.py --synthetic DIR   # of a checkpoint of Phi-3-mini's shape: writes 7.6 GB, removes it

Memory is this process's own peak, anonymous and mapped apart (mapped pages are the file's, and can be dropped).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.measure.memory import MemoryWatch

PHI3_MINI: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "vocab_size": 32064, "hidden_size": 3072,
    "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--synthetic", type=Path, metavar="DIR", help="a folder that does not exist yet")
    parser.add_argument("--tokens", type=int, default=256)
    how = parser.parse_args()
    if how.synthetic:
        how.synthetic.mkdir(parents=True)
        try:
            write_synthetic(how.synthetic)
            score(how.synthetic, how.tokens)
        finally:
            shutil.rmtree(how.synthetic)
    if how.model:
        score(how.model, how.tokens)
        score(how.model, how.tokens)


def score(path: Path, count: int) -> None:
    tokens = np.random.default_rng(0).integers(0, 1000, count).tolist()
    with MemoryWatch(os.getpid()) as memory, open_checkpoint(path) as model:
        begin = time.perf_counter()
        positions = sum(len(chunk) for chunk in Oracle(model.decoder, model.tensors).score(tokens))
        seconds = time.perf_counter() - begin
        parameters = model.parameters
    print(
        f"{path.name}: {parameters / 1e6:.0f}M parameters, {positions} tokens in {seconds:.1f} s; "
        f"peak {memory.peak.anonymous / 1e9:.2f} GB anonymous, {memory.peak.file_mapped / 1e9:.2f} GB mapped"
    )


def write_synthetic(folder: Path) -> None:
    """Random weights from one block that is used again and again: its numbers do not matter, their count does."""
    hidden, ffn = PHI3_MINI["hidden_size"], PHI3_MINI["intermediate_size"]
    (folder / "config.json").write_text(json.dumps(PHI3_MINI))
    block = (np.random.default_rng(0).standard_normal(1 << 24, np.float32) / hidden**0.5).astype(ml_dtypes.bfloat16)
    ones = np.ones(hidden, ml_dtypes.bfloat16)
    layers = [
        {
            f"model.layers.{layer}.input_layernorm.weight": (hidden,),
            f"model.layers.{layer}.self_attn.qkv_proj.weight": (3 * hidden, hidden),
            f"model.layers.{layer}.self_attn.o_proj.weight": (hidden, hidden),
            f"model.layers.{layer}.post_attention_layernorm.weight": (hidden,),
            f"model.layers.{layer}.mlp.gate_up_proj.weight": (2 * ffn, hidden),
            f"model.layers.{layer}.mlp.down_proj.weight": (hidden, ffn),
        }
        for layer in range(PHI3_MINI["num_hidden_layers"])
    ]
    outside = {
        "model.embed_tokens.weight": (PHI3_MINI["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (PHI3_MINI["vocab_size"], hidden),
    }
    shards = [outside, *(dict(item for layer in layers[a : a + 8] for item in layer.items()) for a in range(0, 32, 8))]
    weight_map: dict[str, str] = {}
    for number, shapes in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(shapes, name)
        write_shard(folder / name, shapes, block, ones)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_shard(file: Path, shapes: dict[str, tuple[int, ...]], block: Any, ones: Any) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            left = int(np.prod(shape))
            source = ones if len(shape) == 1 else block
            while left:
                count = min(left, len(source))
                stream.write(source[:count].view(np.uint8).data)
                left -= count


if __name__ == "__main__":
    main()
