"""The forward pass in numpy: what every backend's answers are compared with, so it is written to be checked by reading.

float32 throughout, rotary angles from float64, one layer after the other straight from the file. It is no runtime: as
fast as BLAS makes it, in the memory of a layer, the KV cache and the logits that were asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint.decoder import Activation, Decoder, Rope
from edgecore.checkpoint.tensors import Readable
from edgecore.contract.errors import BadRequest, DoesNotFit
from edgecore.contract.sessions import Logits, TextContext

Floats = NDArray[np.float32]
_BLOCK = 128
"""Positions computed at once: bounds MLP activations, and attention scores to (heads, 128, length of the text)."""


class Oracle:
    """A decoder with its weights. `resident` keeps dequantized weights (4 bytes each) for the next call: for decoding
    token by token; without it each call reads every layer anew and forgets it: for scoring a text in little memory."""

    def __init__(self, decoder: Decoder, tensors: Mapping[str, Readable], *, resident: bool = False) -> None:
        self.decoder = decoder
        self._tensors = tensors
        self._resident = resident
        self._kept: dict[str, Floats] = {}
        self._names: list[list[str]] = [[] for _ in range(decoder.layers)]
        for name in tensors:
            if name.startswith("model.layers."):
                self._names[int(name.split(".")[2])].append(name)

    def context(self, length: int | None = None) -> OracleContext:
        """An empty sequence of at most `length` tokens, by default what the model was trained for."""
        return OracleContext(self, length or self.decoder.context_length)

    def score(self, tokens: Sequence[int], chunk: int = 64) -> Iterator[Logits]:
        """Logits of every position, float32 (at most `chunk`, vocab), in order."""
        tokens = list(tokens)
        self.check_ids(tokens)
        hidden = self.forward(tokens, KVCache(self.decoder, len(tokens)))
        head = self._head()
        for start in range(0, len(tokens), chunk):
            yield self._capped(self._norm(hidden[start : start + chunk], "model.norm") @ head.T)

    def check_ids(self, tokens: Sequence[int]) -> None:
        """Raises `BadRequest` for no tokens, or ids outside the vocabulary."""
        if len(tokens) == 0:
            raise BadRequest("no tokens", supported="at least one token")
        wrong = next((t for t in tokens if not 0 <= t < self.decoder.vocab_size), None)
        if wrong is not None:
            raise BadRequest(f"token id {wrong}", supported=f"ids from 0 to {self.decoder.vocab_size - 1}")

    def forward(self, tokens: Sequence[int], cache: KVCache) -> Floats:
        """Hidden states (T, hidden) before the last norm; appends T positions to the cache."""
        hidden, start = self.embedded(tokens), cache.extend(len(tokens))
        for layer in range(self.decoder.layers):
            self.through(layer, self.block(layer), hidden, cache, start)
        return hidden

    def embedded(self, tokens: Sequence[int]) -> Floats:
        """(T, hidden) as it goes into the first layer."""
        return self._embed(tokens) * np.float32(self.decoder.embedding_scale)

    def block(self, layer: int) -> dict[str, Floats]:
        """The weights of a layer by name."""
        return {name: self._weight(name) for name in self._names[layer]}

    def through(self, layer: int, block: Mapping[str, Floats], hidden: Floats, cache: KVCache, start: int) -> None:
        """One layer: `hidden` (T, hidden) of positions from `start` on, for which the cache has room, in place."""
        at = f"model.layers.{layer}."
        cos, sin = self.turns(layer, start, len(hidden))
        for a in range(0, len(hidden), _BLOCK):
            b = min(a + _BLOCK, len(hidden))
            x = hidden[a:b]
            x = x + self._attention(block, at, layer, x, cache, start + a, (cos[a:b], sin[a:b]))
            hidden[a:b] = x + self._mlp(block, at, x)

    def turns(self, layer: int, start: int, count: int) -> tuple[Floats, Floats]:
        """Cosine and sine of each position's angles in this layer, (count, 1, dim/2) each."""
        return _turns(self.decoder.layer_rope(layer), start, count)

    def logits(self, hidden: Floats) -> Logits:
        """(vocab,) of one position's hidden state."""
        return self._capped(np.asarray(self._head() @ self._norm(hidden, "model.norm")))

    def _attention(
        self, block: Mapping[str, Floats], at: str, layer: int, x: Floats, cache: KVCache, start: int,
        turns: tuple[Floats, Floats],
    ) -> Floats:  # fmt: skip
        d = self.decoder
        x = self._block_norm(block, at + "input_layernorm", x)
        count, x = len(x), self._rounded(x)
        q = self.linear(block, at + "self_attn.q_proj", x).reshape(count, d.heads, d.head_dim)
        k = self.linear(block, at + "self_attn.k_proj", x).reshape(count, d.kv_heads, d.head_dim)
        v = self.linear(block, at + "self_attn.v_proj", x).reshape(count, d.kv_heads, d.head_dim)
        if d.query_key_norm:
            q = self._block_norm(block, at + "self_attn.q_norm", q)
            k = self._block_norm(block, at + "self_attn.k_norm", k)
        joined = self._attend(layer, _rotate(q, turns), _rotate(k, turns), v, cache, start)
        if d.sub_norms:
            joined = self._block_norm(block, at + "self_attn.attn_sub_norm", joined)
        out = self.linear(block, at + "self_attn.o_proj", self._rounded(joined))
        return self._block_norm(block, at + "post_attention_layernorm", out) if d.post_norms else out

    def _attend(self, layer: int, q: Floats, k: Floats, v: Floats, cache: KVCache, start: int) -> Floats:
        """(T, query_size): what the heads find in the past and in what is added to it here."""
        d, count = self.decoder, len(q)
        groups = d.heads // d.kv_heads
        keys, values = cache.put(layer, start, k, v)
        # Query heads share a key/value head in runs of `groups`: (kv_heads, groups * count, head_dim).
        queries = q.reshape(count, d.kv_heads, groups, d.head_dim).transpose(1, 2, 0, 3)
        products = queries.reshape(d.kv_heads, -1, d.head_dim) @ keys.transpose(0, 2, 1)
        scores = products.reshape(d.kv_heads, groups, count, start + count) * np.float32(d.attention_scale)
        if d.attention_softcap:
            scores = _soft_capped(scores, d.attention_softcap)
        scores[:, :, _hidden(start, count, d.layer_window(layer))] = -np.inf
        found = _softmax(scores).reshape(d.kv_heads, groups * count, -1) @ values
        mixed = found.reshape(d.kv_heads, groups, count, d.head_dim).transpose(2, 0, 1, 3)
        return mixed.reshape(count, d.query_size)

    def _mlp(self, block: Mapping[str, Floats], at: str, x: Floats) -> Floats:
        d = self.decoder
        x = self._rounded(self._block_norm(block, at + d.mlp_norm, x))
        gate, up = self.linear(block, at + "mlp.gate_proj", x), self.linear(block, at + "mlp.up_proj", x)
        x = _ACTIVATIONS[d.activation](gate) * up
        if d.sub_norms:
            x = self._block_norm(block, at + "mlp.ffn_sub_norm", x)
        out = self.linear(block, at + "mlp.down_proj", self._rounded(x))
        return self._block_norm(block, at + "post_feedforward_layernorm", out) if d.post_norms else out

    def linear(self, block: Mapping[str, Floats], name: str, x: Floats) -> Floats:
        """(T, n) times the matrix `name` of a layer."""
        return _linear(block, name, x)

    def _rounded(self, x: Floats) -> Floats:
        """(T, n) as it enters a projection."""
        if not self.decoder.int8_activations:
            return x
        scale = np.float32(127) / np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-5))
        return np.asarray(np.clip(np.rint(x * scale), -128, 127) / scale)

    def _block_norm(self, block: Mapping[str, Floats], name: str, x: Floats) -> Floats:
        return _rms_norm(x, block[name + ".weight"], self.decoder.norm_epsilon)

    def _capped(self, logits: Floats) -> Floats:
        cap = self.decoder.logit_softcap
        return _soft_capped(logits, cap) if cap else logits

    def _embed(self, tokens: Sequence[int]) -> Floats:
        """Rows of the embedding table, each dequantized on its own: a few rows must not cost the whole table."""
        table = self._tensors["model.embed_tokens.weight"]
        if self._resident:
            return np.asarray(self._weight(table.name)[np.asarray(tokens)])
        rows = {token: table.rows(token, token + 1)[0] for token in set(tokens)}
        return np.stack([rows[token] for token in tokens])

    def _norm(self, hidden: Floats, name: str) -> Floats:
        return _rms_norm(hidden, self._weight(name + ".weight"), self.decoder.norm_epsilon)

    def _head(self) -> Floats:
        return self._weight("model.embed_tokens.weight" if self.decoder.tied else "lm_head.weight")

    def _weight(self, name: str) -> Floats:
        if name in self._kept:
            return self._kept[name]
        weight = self._tensors[name].read()
        if self._resident:
            self._kept[name] = weight
        return weight


class KVCache:
    """Keys and values of one sequence, (layers, kv_heads, positions, head_dim) each, growing as it is used."""

    def __init__(self, decoder: Decoder, length: int) -> None:
        self._decoder = decoder
        self._length = length
        self.used = 0
        self._allocate(min(length, 256))

    def extend(self, count: int) -> int:
        """Make room for `count` positions; answers where they begin."""
        start, self.used = self.used, self.used + count
        if self.used > self._keys.shape[2]:
            keys, values = self._keys, self._values
            self._allocate(min(self._length, max(self.used, 2 * keys.shape[2])))
            self._keys[:, :, :start] = keys[:, :, :start]
            self._values[:, :, :start] = values[:, :, :start]
        return start

    def put(self, layer: int, start: int, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
        """Store (T, kv_heads, head_dim) at `start`; answers the layer's whole past, (kv_heads, start + T, head_dim)."""
        end = start + len(keys)
        self._keys[layer, :, start:end] = keys.swapaxes(0, 1)
        self._values[layer, :, start:end] = values.swapaxes(0, 1)
        return self._keys[layer, :, :end], self._values[layer, :, :end]

    def _allocate(self, positions: int) -> None:
        shape = (self._decoder.layers, self._decoder.kv_heads, positions, self._decoder.head_dim)
        self._keys, self._values = np.empty(shape, np.float32), np.empty(shape, np.float32)


class OracleContext(TextContext):
    """One sequence. See `TextContext` for what each method promises."""

    def __init__(self, oracle: Oracle, length: int) -> None:
        self._oracle = oracle
        self._length = length
        self._tokens: list[int] = []
        self._cache = KVCache(oracle.decoder, length)
        self._long: bool | None = False
        """Which of longrope's frequencies the cached keys are turned by; None: they are not to be used."""

    @property
    def tokens(self) -> Sequence[int]:
        return tuple(self._tokens)

    @property
    def position(self) -> int:
        return len(self._tokens)

    def prefill(self, tokens: Sequence[int]) -> Logits:
        tokens = [int(token) for token in tokens]
        self._oracle.check_ids(tokens)
        if self.position + len(tokens) > self._length:
            raise DoesNotFit(
                f"{len(tokens)} tokens after {self.position} exceed the context",
                supported=f"up to {self._length} tokens in all",
            )
        self._cache.used = self.position  # an earlier call may have been interrupted half way
        long = self._oracle.decoder.rope.is_long(self.position + len(tokens))
        if long != self._long:
            # A longer sequence, or after a rewind a shorter one, turns every position otherwise: all is computed anew.
            # transformers drops its cache at the same place.
            self._cache.used, self._long = 0, None
        hidden = self._oracle.forward([*self._tokens[self._cache.used :], *tokens], self._cache)
        self._long = long
        self._tokens += tokens
        return self._oracle.logits(hidden[-1])

    def step(self, token: int) -> Logits:
        return self.prefill([token])

    def rewind(self, n: int) -> None:
        if not 0 <= n <= self.position:
            raise BadRequest(f"cannot rewind {n} tokens", supported=f"0 to {self.position}")
        del self._tokens[self.position - n :]
        self._cache.used = self.position

    def reset(self) -> None:
        self.rewind(self.position)


def _linear(block: Mapping[str, Floats], name: str, x: Floats) -> Floats:
    y = x @ block[name + ".weight"].T
    bias = block.get(name + ".bias")
    return y if bias is None else y + bias


def _rms_norm(x: Floats, weight: Floats, epsilon: float) -> Floats:
    scale = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(epsilon))
    return np.asarray(x * scale * weight)


def _silu(x: Floats) -> Floats:
    """x * sigmoid(x), without overflow at either end."""
    small = np.exp(-np.abs(x))
    return np.asarray(x * np.where(x >= 0, np.float32(1), small) / (1 + small))


def _softmax(scores: Floats) -> Floats:
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def _relu2(x: Floats) -> Floats:
    return np.asarray(np.square(np.maximum(x, 0)))


def _gelu_tanh(x: Floats) -> Floats:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.asarray(np.float32(0.5) * x * (1 + np.tanh(inner)))


_ACTIVATIONS: Mapping[Activation, Callable[[Floats], Floats]] = {
    Activation.SILU: _silu,
    Activation.GELU_TANH: _gelu_tanh,
    Activation.RELU2: _relu2,
}


def _soft_capped(x: Floats, cap: float) -> Floats:
    return np.asarray(np.tanh(x / np.float32(cap)) * np.float32(cap))


def _hidden(start: int, count: int, window: int) -> NDArray[np.bool_]:
    """(count, start + count) True where a position must not look: the future, and what its window has left behind."""
    keys, queries = np.arange(start + count), np.arange(start, start + count)[:, None]
    return (keys > queries) | (keys <= queries - window) if window else keys > queries


def _turns(rope: Rope, start: int, count: int) -> tuple[Floats, Floats]:
    """Cosine and sine of each position's angles, (count, 1, dim/2) each."""
    angles = (np.arange(start, start + count)[:, None] * rope.frequencies(start + count))[:, None, :]
    cos, sin = np.cos(angles) * rope.attention_factor, np.sin(angles) * rope.attention_factor
    return cos.astype(np.float32), sin.astype(np.float32)


def _rotate(heads: Floats, turns: tuple[Floats, Floats]) -> Floats:
    """Turn the first 2 * dim/2 elements of each head of (T, heads, head_dim), element i with element i + dim/2."""
    cos, sin = turns
    half = cos.shape[-1]
    a, b, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)
