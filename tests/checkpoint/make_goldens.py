"""Makes the golden logits that the oracle is held to: small random checkpoints, answered by transformers in float32.

Needs torch and transformers, which nothing else here does, so it runs in an environment of its own, by hand:

    python -m venv goldens
    goldens/bin/pip install torch==2.13.0 transformers==5.23.0 ml_dtypes safetensors tokenizers
    PYTHONPATH=tests goldens/bin/python tests/checkpoint/make_goldens.py

Weights come from a seed, and checkpoints are committed beside their goldens, so a run shows whether anything changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from support.tiny import tiny_llama

HERE = Path(__file__).parent / "goldens"
TOKENS = 48
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "grouped-query-tied": {"heads": 4, "kv_heads": 2},
    "multi-head-untied-bf16": {"heads": 4, "kv_heads": 4, "tied": False, "dtype": "BF16"},
    "multi-query-own-head-dim": {"heads": 4, "kv_heads": 1, "head_dim": 32},
    "rope-llama3": {"heads": 4, "kv_heads": 2, "rope": LLAMA3, "tied": False},
    "rope-linear": {"heads": 4, "kv_heads": 2, "rope": {"type": "linear", "factor": 4.0}},
    "biases-new-style-config": {"heads": 2, "kv_heads": 1, "rope": LLAMA3},
    "sharded": {"heads": 2, "kv_heads": 2, "shards": 3},
}


def main() -> None:
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    for seed, (name, case) in enumerate(CASES.items()):
        folder = tiny_llama(HERE / name, hidden=64, intermediate=96, vocab=288, seed=seed, **case)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / file).unlink()
        if name == "biases-new-style-config":
            add_biases(folder, seed)
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        tokens = np.random.default_rng(seed).integers(0, model.config.vocab_size, TOKENS)
        with torch.no_grad():
            ids = torch.from_numpy(tokens)[None]
            logits = model(ids).logits[0].numpy()
            greedy = model.generate(ids[:, :8], max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0)
        np.savez(folder / "golden.npz", tokens=tokens, logits=logits, greedy=greedy[0, 8:].numpy())
        distinct = len(set(greedy[0, 8:].tolist()))
        print(f"{name:28} standard deviation {logits.std():.2f}, {distinct} distinct greedy tokens")


def add_biases(folder: Path, seed: int) -> None:
    """Random biases everywhere, and the rotary settings in the newer `rope_parameters`."""
    random = np.random.default_rng(seed + 1000)
    weights = load_file(folder / "model.safetensors")
    for name in [n for n in weights if n.endswith("_proj.weight")]:
        bias = random.standard_normal(len(weights[name]), np.float32) * 0.3
        weights[name.replace(".weight", ".bias")] = bias.astype(weights[name].dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["rope_parameters"] = {**config.pop("rope_scaling"), "rope_theta": config.pop("rope_theta")}
    file.write_text(json.dumps({**config, "attention_bias": True, "mlp_bias": True}, indent=2) + "\n")


if __name__ == "__main__":
    main()
