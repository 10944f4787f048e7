"""A tiny random Llama with a real tokenizer, because most tests need *a* model and none should need a download.

    from support.tiny import tiny_llama
    folder = tiny_llama(tmp_path / "tiny")

Sizes are multiples of 256, so every quantization of llama.cpp can hold the rows. Weights are drawn large enough that
logits have a standard deviation near 4, as a trained model's: with smaller ones every answer is close to uniform
and no fault shows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = """\
The lighthouse keeper wrote one line for every night that he spent above the sea. He wrote down the wind, the colour of
the water, the ships that went by and the ships that did not. Nobody had asked him to do this, and nobody read what he
wrote; but the pages were numbered, and the numbers were right. In the winter of that year
the lamp went out three times.
The first time it was the oil, which had become thick with the cold. The second time it was a bird. The third time he
could not say what it was, and so he wrote: the lamp went out, the reason is not known, it was lit again at 04:15.
When the inspector came in the spring he counted the barrels, measured the wick, and asked for the book. He read it
standing at the window, slowly, from the first page to the last, while the keeper made tea and said nothing at all.
"You have written that the reason is not known," said the inspector. "In twenty years I have read a hundred of these
books, and in every one of them the reason is always known. It is the wind, or the oil, or the boy who was asleep."
"It was not the wind," said the keeper. "There was no wind. I wrote that down too."
The inspector looked at the page again, and then at the sea, and then he closed the book and gave it back.
A model of the world that is never wrong has never been asked. What can be measured should be measured, and what was
measured should be written down with the hour, the place and the instrument; then someone else may go there and look.
def mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values) if values else None
Prices: 12.50, 1,299.00 and 3 for 10. Dates: 1871-03-18, 2026-11-21.
Words: naïve, façade, Übung, señor, Привет, 你好, 🙂.
"""
"""Own words; what the tokenizer is trained on, and handy as a prompt."""


def tiny_llama(
    folder: Path,
    *,
    layers: int = 2,
    hidden: int = 256,
    vocab: int = 512,
    heads: int = 4,
    kv_heads: int = 2,
    tied: bool = True,
    seed: int = 0,
    head_dim: int | None = None,
    intermediate: int = 512,
    context: int = 512,
    rope: dict[str, Any] | None = None,
    dtype: str = "F16",
    shards: int = 1,
) -> Path:
    """Writes a Hugging Face folder and answers it. `rope` is the config's `rope_scaling`; `dtype` F32, F16 or BF16."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(vocab)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim or hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": rope,
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype],
    }
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "unk_token": SPECIAL[0],
        "pad_token": SPECIAL[2],
        "add_prefix_space": False,
        "model_max_length": context,
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "tokenizer_config.json", settings)
    _save(folder, random_weights(config, seed, dtype), shards)
    return folder


def train_tokenizer(vocab: int) -> Tokenizer:
    """A byte-level BPE with SmolLM's pre-tokenizer: GPT-2's, digits one by one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    return tokenizer


def random_weights(config: dict[str, Any], seed: int, dtype: str) -> dict[str, NDArray[Any]]:
    """Weights by Hugging Face name, rounded to `dtype` before anything else can see them."""
    random = np.random.default_rng(seed)
    stored = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[dtype]
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]

    def matrix(rows: int, columns: int, gain: float = 1.0) -> NDArray[Any]:
        drawn: NDArray[Any] = random.standard_normal((rows, columns), np.float32) * gain / columns**0.5
        return drawn.astype(stored)

    def norm() -> NDArray[Any]:
        drawn: NDArray[Any] = 1 + 0.1 * random.standard_normal(hidden, np.float32)
        return drawn.astype(stored)

    weights = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden, 4.0)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        weights[at + "input_layernorm.weight"] = norm()
        weights[at + "self_attn.q_proj.weight"] = matrix(q, hidden, 1.5)
        weights[at + "self_attn.k_proj.weight"] = matrix(kv, hidden, 1.5)
        weights[at + "self_attn.v_proj.weight"] = matrix(kv, hidden)
        weights[at + "self_attn.o_proj.weight"] = matrix(hidden, q, 2.0)
        weights[at + "post_attention_layernorm.weight"] = norm()
        weights[at + "mlp.gate_proj.weight"] = matrix(ffn, hidden, 2.0)
        weights[at + "mlp.up_proj.weight"] = matrix(ffn, hidden, 2.0)
        weights[at + "mlp.down_proj.weight"] = matrix(hidden, ffn, 2.0)
    weights["model.norm.weight"] = norm()
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = matrix(config["vocab_size"], hidden, 4.0)
    return weights


def _save(folder: Path, weights: dict[str, NDArray[Any]], shards: int) -> None:
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for number, names in enumerate(np.array_split(list(weights), shards), start=1):
        file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        save_file({str(name): weights[str(name)] for name in names}, folder / file, metadata={"format": "pt"})
        weight_map.update({str(name): file for name in names})
    total = sum(w.nbytes for w in weights.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
