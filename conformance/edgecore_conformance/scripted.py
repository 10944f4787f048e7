"""A Llama that says what a script says, because what generation does with text cannot be tested on answers that nobody
knows beforehand: ends, stop strings across tokens, characters across tokens, answers without end.

Attention and MLP add nothing, so the last token alone decides: the output row of its successor is its own embedding,
and leads every other logit by some twenty. Quantized, sampled at temperature 1, or computed in bfloat16, it says the
same. The script is drawn from the run's seed, over the trained model's vocabulary: nothing of it can be known
beforehand.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint.safetensors_out import Entry, write_safetensors
from edgecore.checkpoint.tokenizer import Tokenizer, TokenType
from edgecore_conformance.fixtures.numbers import bell

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, CONTEXT = 256, 256, 4, 2, 64, 512
LEAD = 32.0
"""Logit of the successor; others have a standard deviation of 2."""
CHARACTERS = ("🙂", "中", "é", "ж", "한")
"""Characters of two to four bytes, no byte of which is in two of them: a token has one successor."""


@dataclass(frozen=True)
class Script:
    """What follows what. A chain is entered by a prompt that ends with its first token."""

    loop: tuple[int, ...]
    """Goes round for ever."""
    words: tuple[int, ...]
    """Goes over into the loop."""
    characters: tuple[int, ...]
    """Words and characters, each byte of a character a token of its own; goes over into the loop."""
    half: tuple[int, ...]
    """Its last token but one is the first byte of a character; then it ends."""
    ends: tuple[tuple[int, ...], ...]
    """One for each token that ends a generation, which is its last; a word would follow."""
    prompts: tuple[int, ...]
    """Tokens that lead into the loop, for the beginnings of prompts."""

    @property
    def successors(self) -> dict[int, int]:
        """Of every token that a chain names; of all others it is the loop's first."""
        found = dict(zip(self.loop, (*self.loop[1:], self.loop[0]), strict=True))
        for chain in (self.words, self.characters):
            found |= zip(chain, (*chain[1:], self.loop[0]), strict=True)
        for chain in (self.half, *self.ends):
            found |= pairwise(chain)
        return found

    def answer(self, last: int, count: int) -> list[int]:
        """`count` tokens after a prompt that ends with `last`, whatever they are."""
        successors, made = self.successors, []
        for _ in range(count):
            last = successors.get(last, self.loop[0])
            made.append(last)
        return made


def script(tokenizer: Tokenizer, draw: Random) -> Script:
    """The run's script. `draw` depends on the seed alone."""
    plain = [i for i in range(tokenizer.vocab_size) if tokenizer.types[i] is TokenType.NORMAL]
    text = {i: tokenizer.token_bytes(i) for i in plain}
    single = {data[0]: i for i, data in text.items() if len(data) == 1}
    # Words that begin with a space and have letters only: joined they read back as themselves, and can be cut inside.
    spaced = [i for i, b in text.items() if len(b) >= 3 and b[:1] == b" " and b[1:].isalpha()]
    inner = [i for i, b in text.items() if len(b) >= 2 and b.isalpha()]
    draw.shuffle(spaced)
    draw.shuffle(inner)
    pool = iter([*spaced, *inner])

    def take(count: int) -> list[int]:
        return [next(pool) for _ in range(count)]

    characters: list[int] = []
    for character in draw.sample(CHARACTERS, len(CHARACTERS)):
        characters += [*take(1), *(single[byte] for byte in character.encode())]
    half_end, *other_ends = sorted(tokenizer.eos_ids)
    return Script(
        loop=tuple(take(9)),
        words=tuple(take(16)),
        characters=(*characters, *take(1)),
        half=(*take(2), single["я".encode()[0]], half_end),
        ends=tuple((*take(3), end) for end in (half_end, *other_ends)),
        prompts=tuple(take(8)),
    )


def write(folder: Path, source: Path, tokenizer: Tokenizer, made: Script) -> Path:
    """The model as a Hugging Face folder, with the tokenizer files of `source`."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*token*.json"):
        shutil.copyfile(file, folder / file.name)
    vocabulary = json.loads((source / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    given = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary, "hidden_size": HIDDEN,
        "intermediate_size": FFN, "num_hidden_layers": 1, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "hidden_act": "silu",
        "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None,
        "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "torch_dtype": "float16",
        **{name: given[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in given},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    write_safetensors(
        folder / "model.safetensors",
        [Entry(name, "F16", w.shape, partial(_data, w)) for name, w in weights(vocabulary, made).items()],
    )
    return folder


def weights(vocabulary: int, made: Script) -> dict[str, NDArray[np.float32]]:
    """By Hugging Face name. Tokens with the same successor have one embedding, so that no output row is a sum."""
    successors = {i: made.successors.get(i, made.loop[0]) for i in range(vocabulary)}
    directions = bell("edgecore scripted directions", (vocabulary, HIDDEN), 1.0)
    directions /= np.sqrt((directions**2).mean(axis=1, keepdims=True))
    embeddings = np.stack([directions[successors[i]] for i in range(vocabulary)])
    head = np.zeros((vocabulary, HIDDEN), np.float32)
    said = sorted(set(successors.values()))
    head[said] = directions[said] * np.float32(LEAD / HIDDEN)
    at, q, kv = "model.layers.0.", HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    ones, small = np.ones(HIDDEN, np.float32), 1 / 16
    return {
        "model.embed_tokens.weight": embeddings,
        at + "input_layernorm.weight": ones,
        at + "self_attn.q_proj.weight": bell("edgecore scripted q", (q, HIDDEN), small),
        at + "self_attn.k_proj.weight": bell("edgecore scripted k", (kv, HIDDEN), small),
        at + "self_attn.v_proj.weight": bell("edgecore scripted v", (kv, HIDDEN), small),
        at + "self_attn.o_proj.weight": np.zeros((HIDDEN, q), np.float32),
        at + "post_attention_layernorm.weight": ones,
        at + "mlp.gate_proj.weight": bell("edgecore scripted gate", (FFN, HIDDEN), small),
        at + "mlp.up_proj.weight": bell("edgecore scripted up", (FFN, HIDDEN), small),
        at + "mlp.down_proj.weight": np.zeros((HIDDEN, FFN), np.float32),
        "model.norm.weight": ones,
        "lm_head.weight": head,
    }


def _data(weight: NDArray[np.float32]) -> Any:
    yield np.ascontiguousarray(weight.astype(np.float16)).view(np.uint8)


def said(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Text of generated tokens, joined as bytes: what a stream of them shows."""
    return b"".join(map(tokenizer.token_bytes, tokens)).decode("utf-8", "replace")
