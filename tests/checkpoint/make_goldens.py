"""Makes the golden logits that the oracle is held to: small random checkpoints, answered by transformers in float32.

Needs torch and transformers, which nothing else here does, so it runs in an environment of its own, by hand:

    python -m venv goldens
    goldens/bin/pip install torch==2.13.0 transformers==5.23.0 accelerate ml_dtypes safetensors tokenizers
    PYTHONPATH=tests goldens/bin/python tests/checkpoint/make_goldens.py [NAME ...]

Weights come from a seed, and checkpoints are committed beside their goldens, so a run shows whether anything changed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from support.tiny import tiny_llama

HERE = Path(__file__).parent / "goldens"
TOKENS = 48
STEADY = 1e-4
"""Logits may not move more when the last bits of the embeddings do, or when the arithmetic is float64."""
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LLAMAS: dict[str, dict[str, Any]] = {
    "grouped-query-tied": {"heads": 4, "kv_heads": 2},
    "multi-head-untied-bf16": {"heads": 4, "kv_heads": 4, "tied": False, "dtype": "BF16"},
    "multi-query-own-head-dim": {"heads": 4, "kv_heads": 1, "head_dim": 32},
    "rope-llama3": {"heads": 4, "kv_heads": 2, "rope": LLAMA3, "tied": False},
    "rope-linear": {"heads": 4, "kv_heads": 2, "rope": {"type": "linear", "factor": 4.0}},
    "biases-new-style-config": {"heads": 2, "kv_heads": 1, "rope": LLAMA3},
    "sharded": {"heads": 2, "kv_heads": 2, "shards": 3},
}

SIZES = {
    "vocab_size": 288, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GEMMA = {
    **SIZES, "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "head_dim": 32,
    "num_hidden_layers": 3, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 32, "sliding_window": 16,
}  # fmt: skip
PHI = {**SIZES, "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "hidden_act": "silu"}
LONGROPE = {
    "type": "longrope", "short_factor": [1.0, 1.02, 1.05, 1.1, 1.2, 1.3], "long_factor": [1.1, 1.5, 2.0, 4.0, 8.0, 9.5],
}  # fmt: skip
BITNET = {**SIZES, "model_type": "bitnet", "architectures": ["BitNetForCausalLM"], "hidden_act": "relu2"}
PACKED = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
OTHERS: dict[str, dict[str, Any]] = {
    "mistral-window": {
        **SIZES, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "hidden_act": "silu",
        "sliding_window": 16, "rope_theta": 10000.0, "tie_word_embeddings": False, "head_dim": None,
    },
    "mistral-own-head-dim": {
        **SIZES, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "hidden_act": "silu", "head_dim": 24,
        "sliding_window": None, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    },
    "qwen2-biases": {
        **SIZES, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu",
        "rope_theta": 1000000.0, "tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": 16,
        "max_window_layers": 1,
    },
    "qwen2-windows": {
        **SIZES, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu",
        "rope_theta": 1000000.0, "tie_word_embeddings": False, "use_sliding_window": True, "sliding_window": 16,
        "max_window_layers": 1, "num_hidden_layers": 3,
    },
    "qwen3-tied": {
        **SIZES, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu", "head_dim": 32,
        "rope_theta": 1000000.0, "tie_word_embeddings": True, "attention_bias": False,
    },
    "qwen3-new-style-windows": {
        **SIZES, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu", "head_dim": 24,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "tie_word_embeddings": False,
        "attention_bias": True, "use_sliding_window": True, "sliding_window": 12,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gemma3-old-style": {
        **GEMMA, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window_pattern": 3,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "final_logit_softcapping": None,
    },
    "gemma3-new-style-soft-caps": {
        **GEMMA, "query_pre_attn_scalar": 48, "final_logit_softcapping": 12.0, "attn_logit_softcapping": 6.0,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 500000.0},
        },
    },
    "phi3-window": {
        **PHI, "rope_theta": 10000.0, "rope_scaling": None, "sliding_window": 20, "num_key_value_heads": 4,
        "tie_word_embeddings": False, "original_max_position_embeddings": 512,
    },
    "phi3-longrope-partial": {
        **PHI, "max_position_embeddings": 64, "rope_theta": 10000.0, "rope_scaling": LONGROPE,
        "partial_rotary_factor": 0.75, "sliding_window": None, "tie_word_embeddings": True,
        "original_max_position_embeddings": 16,
    },
    "phi3-longrope-new-style": {
        **PHI, "rope_parameters": {
            **LONGROPE, "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
        },
        "tie_word_embeddings": False, "original_max_position_embeddings": 64,
    },
    "bitnet-packed": {**BITNET, "rope_theta": 500000.0, "tie_word_embeddings": True, "quantization_config": PACKED},
    "bitnet-unpacked": {**BITNET, "rope_theta": 500000.0, "tie_word_embeddings": True, "quantization_config": PACKED},
    "bitnet-packed-inverse-scale": {
        **BITNET, "rope_theta": 500000.0, "tie_word_embeddings": False,
        "quantization_config": {"quant_method": "bitnet"},
    },
    "bitnet-master-weights": {
        **BITNET, "rope_theta": 500000.0, "tie_word_embeddings": True,
        "quantization_config": {**PACKED, "quantization_mode": "online"},
    },
    "bitnet-plain-silu": {
        **BITNET, "hidden_act": "silu", "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
}  # fmt: skip


def main(names: list[str]) -> None:
    for number, name in enumerate([*LLAMAS, *OTHERS]):
        if names and name not in names:
            continue
        seed = number
        while not make(name, seed):
            seed += 100


def make(name: str, seed: int) -> bool:
    """Writes the checkpoint and its golden. False for weights whose answer hangs on the last bits of the arithmetic:
    8-bit activations step, and one that lies on a step falls either way."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    folder = llama(name, seed) if name in LLAMAS else other(name, seed)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    # Gemma 3's attention has a soft cap but is not told of the config's: it takes it from the caller.
    cap = getattr(model.config, "attn_logit_softcapping", None)
    more = {"softcap": cap} if cap else {}
    tokens = np.random.default_rng(seed).integers(0, model.config.vocab_size, TOKENS)

    def answer(ids: list[int], kind: torch.dtype = torch.float32) -> NDArray[np.float32]:
        cast(model, kind)
        with torch.no_grad():
            logits: NDArray[np.float32] = model(torch.tensor([ids]), use_cache=False, **more).logits[0].numpy()
        return logits

    logits = answer(tokens.tolist())
    greedy: list[int] = []
    for _ in range(16):
        greedy.append(int(answer([*tokens[:8].tolist(), *greedy])[-1].argmax()))
    embeddings = model.get_input_embeddings().weight
    noise = 0.0
    for _ in range(8):
        embeddings.data *= 1 + 1e-7 * torch.randn_like(embeddings)
        for kind in (torch.float32, torch.float64):
            noise = max(noise, float(np.abs(logits - answer(tokens.tolist(), kind)).max()))
    np.savez(folder / "golden.npz", tokens=tokens, logits=logits, greedy=np.array(greedy))
    print(
        f"{name:28} seed {seed:3}, standard deviation {logits.std():.2f}, noise {noise:.0e}, "
        f"{len(set(greedy))} distinct greedy tokens"
    )
    return bool(noise < STEADY)


def cast(model: Any, kind: Any) -> None:
    """All weights to `kind`. Not `model.to`: transformers refuses it for BitNet, whose layers keep the file's type."""
    import torch

    for values in (*model.parameters(), *model.buffers()):
        if values.is_floating_point():
            values.data = values.data.to(kind)
    for module in model.modules():
        if isinstance(vars(module).get("dtype"), torch.dtype):
            module.dtype = kind


def llama(name: str, seed: int) -> Path:
    folder = tiny_llama(HERE / name, hidden=64, intermediate=96, vocab=288, seed=seed, **LLAMAS[name])
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    if name == "biases-new-style-config":
        add_biases(folder, seed)
    return folder


def other(name: str, seed: int) -> Path:
    """A checkpoint whose tensors are those that transformers' own model of that config has."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    config = OTHERS[name]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    if config.get("tie_word_embeddings", config["model_type"] == "gemma3_text"):
        shapes.pop("lm_head.weight")
    weights = random_weights(shapes, seed, gemma=config["model_type"] == "gemma3_text")
    how = config.get("quantization_config")
    if how and how.get("quantization_mode") != "online":
        weights = finished(weights, seed, pack="unpacked" not in name, inverse="linear_class" not in how)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int, gemma: bool) -> dict[str, NDArray[Any]]:
    """Large enough that logits have a standard deviation near 4 (support/tiny.py says why). Gemma keeps its norms as
    their distance from one."""
    random = np.random.default_rng(seed)
    weights: dict[str, NDArray[Any]] = {}
    for name, shape in shapes.items():
        drawn = random.standard_normal(shape, np.float32)
        if name.endswith("norm.weight"):
            drawn = 0.1 * drawn + (0 if gemma else 1)
            if gemma and "post_" in name:
                drawn += 6  # against embeddings that are scaled by sqrt(hidden): else a token predicts itself
        elif name.endswith(".bias"):
            drawn = 0.3 * drawn
        else:
            drawn *= gain(name) / shape[-1] ** 0.5
        weights[name] = drawn.astype(ml_dtypes.bfloat16 if seed % 2 else np.float16)
    return weights


def gain(name: str) -> float:
    if "embed" in name or "head" in name:
        return 4.0
    return 1.5 if any(part in name for part in ("q_proj", "k_proj", "qkv_proj")) else 2.0


def finished(weights: dict[str, NDArray[Any]], seed: int, pack: bool, inverse: bool) -> dict[str, NDArray[Any]]:
    """Projections as ternary weights, packed four rows to a byte or not, with scales that do not follow from them."""
    import torch
    from transformers.integrations.bitnet import pack_weights

    random = np.random.default_rng(seed + 1000)
    made: dict[str, NDArray[Any]] = {}
    for name, weight in weights.items():
        if not name.endswith("_proj.weight"):
            made[name] = weight
            continue
        values = np.asarray(weight, np.float32)
        ternary = np.clip(np.rint(values / np.abs(values).mean()), -1, 1)
        made[name] = pack_weights(torch.from_numpy(ternary)).numpy() if pack else ternary.astype(weight.dtype)
        scale = np.float32(random.uniform(0.1, 0.3))
        made[name.replace(".weight", ".weight_scale")] = np.array([1 / scale if inverse else scale], ml_dtypes.bfloat16)
    return made


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
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # BitNet's functions ask for a compiler, which changes no number
    main(sys.argv[1:])
