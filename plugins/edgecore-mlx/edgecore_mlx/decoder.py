"""The neutral model's computation in MLX: one function a part, top to bottom like the paper's figure.

Weights lie under the names that the family's Hugging Face folders have; matrices that can be one (q, k and v; gate and
up) may be, as loading.py decides. Families differ in what `Decoder` says, and in nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from edgecore.checkpoint import Activation, Decoder
from edgecore_mlx.cache import Cache, Rows
from edgecore_mlx.matrices import Matrix
from edgecore_mlx.rope import Turns

QKV, GATE_UP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
QKV_NAME, GATE_UP_NAME = "qkv_proj", "gate_up_proj"


class Model:
    """A decoder with its weights: matrices by name without `.weight`, norms and biases as arrays under whole names."""

    def __init__(
        self, decoder: Decoder, matrices: Mapping[str, Matrix], vectors: Mapping[str, mx.array], *,
        fused: bool = False, kv: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """fused: elementwise operations that follow each other become one, by a compiler that MLX has to have.
        kv: how the KV cache is packed, see `Cache`."""
        self.decoder = decoder
        self._matrices, self._vectors = matrices, vectors
        self._kv = kv
        self._dtype = vectors["model.norm.weight"].dtype
        ropes = dict.fromkeys(decoder.layer_rope(layer) for layer in range(decoder.layers))
        self._turns = {rope: Turns.of(rope, decoder.head_dim, self._dtype) for rope in ropes}
        self._gated = mx.compile(_GATED[decoder.activation], shapeless=True) if fused else _GATED[decoder.activation]
        self._add = _clipped if self._dtype == mx.float16 and decoder.post_norms else mx.add

    @property
    def vocab_size(self) -> int:
        return self.decoder.vocab_size

    @property
    def sliced(self) -> bool:
        return True

    def new_cache(self) -> Cache:
        return Cache(self.decoder.layers, self._kv)

    def __call__(self, tokens: mx.array, cache: Cache, last: int | None = None) -> mx.array:
        """Logits, float32 (n, vocab), of int32 (n,) tokens that follow what is in the cache, and are put there.

        last: of so many last positions only, (last, vocab).
        """
        d = self.decoder
        x = self._matrices["model.embed_tokens"].lookup(tokens)[None].astype(self._dtype)
        if d.embedding_scale != 1:
            x = x * d.embedding_scale
        count = x.shape[1]
        masks = {window: _mask(count, cache.filled, window) for window in {*map(d.layer_window, range(d.layers))}}
        for layer in range(d.layers):
            at, window = f"model.layers.{layer}.", d.layer_window(layer)
            x = self._add(x, self._attention(at, layer, x, cache, window, masks[window]))
            x = self._add(x, self._mlp(at, x))
        cache.took(count)
        return self._logits(x[0] if last is None else x[0, -last:])

    def _attention(
        self, at: str, layer: int, x: mx.array, cache: Cache, window: int, mask: mx.array | str | None
    ) -> mx.array:
        d, turns, count = self.decoder, self._turns[self.decoder.layer_rope(layer)], x.shape[1]
        x = self._rounded(self._norm(at + "input_layernorm", x))
        q, k, v = (
            heads.reshape(1, count, -1, d.head_dim) for heads in self._several(at + "self_attn.", QKV_NAME, QKV, x)
        )
        if d.query_key_norm:
            q, k = self._norm(at + "self_attn.q_norm", q), self._norm(at + "self_attn.k_norm", k)
        q, k, v = (heads.swapaxes(1, 2) for heads in (q, k, v))
        q, k = (turns.rotate(heads, cache.filled, cache.long) for heads in (q, k))
        keys, values = cache.put(layer, k, v, window)
        x = self._attend(q, keys, values, mask, cache.how).swapaxes(1, 2).reshape(1, count, d.query_size)
        if d.sub_norms:
            x = self._norm(at + "self_attn.attn_sub_norm", x)
        x = self._linear(at + "self_attn.o_proj", self._rounded(x))
        return self._norm(at + "post_attention_layernorm", x) if d.post_norms else x

    def _attend(
        self, q: mx.array, keys: Rows, values: Rows, mask: mx.array | str | None, how: Mapping[str, Any]
    ) -> mx.array:
        d = self.decoder
        if not (d.attention_softcap or how):
            return mx.fast.scaled_dot_product_attention(q, *keys, *values, scale=d.attention_scale, mask=mask)
        # Written out: MLX's attention has no soft cap, and takes no packed keys.
        count, total = q.shape[2], keys[0].shape[2]
        rows = (q * d.attention_scale).reshape(1, d.kv_heads, -1, d.head_dim)
        scores = _product(rows, keys, how, True).reshape(1, d.kv_heads, -1, count, total)
        if d.attention_softcap:
            scores = _soft_capped(scores, d.attention_softcap)
        if mask is not None:
            seen = _seen(count, total, 0) if isinstance(mask, str) else mask
            scores = mx.where(seen, scores, mx.finfo(scores.dtype).min)
        shares = mx.softmax(scores, axis=-1, precise=True).reshape(1, d.kv_heads, -1, total)
        return _product(shares, values, how, False).reshape(1, d.heads, count, d.head_dim)

    def _mlp(self, at: str, x: mx.array) -> mx.array:
        d = self.decoder
        x = self._rounded(self._norm(at + d.mlp_norm, x))
        x = self._gated(*self._several(at + "mlp.", GATE_UP_NAME, GATE_UP, x))
        if d.sub_norms:
            x = self._norm(at + "mlp.ffn_sub_norm", x)
        x = self._linear(at + "mlp.down_proj", self._rounded(x))
        return self._norm(at + "post_feedforward_layernorm", x) if d.post_norms else x

    def _logits(self, x: mx.array) -> mx.array:
        d = self.decoder
        x = self._norm("model.norm", x)
        x = self._matrices["model.embed_tokens" if d.tied else "lm_head"].product(x).astype(mx.float32)
        return _soft_capped(x, d.logit_softcap) if d.logit_softcap else x

    def _norm(self, name: str, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, self._vectors[name + ".weight"], self.decoder.norm_epsilon)

    def _rounded(self, x: mx.array) -> mx.array:
        """What enters a projection, rounded position by position to 8 bits, where the model was trained so."""
        if not self.decoder.int8_activations:
            return x
        scale = 127 / mx.maximum(mx.abs(x).max(axis=-1, keepdims=True), 1e-5)
        return mx.clip(mx.round(x * scale), -128, 127) / scale

    def _linear(self, name: str, x: mx.array) -> mx.array:
        y = self._matrices[name].product(x)
        bias = self._vectors.get(name + ".bias")
        return y if bias is None else y + bias

    def _several(self, at: str, whole: str, parts: tuple[str, ...], x: mx.array) -> list[mx.array]:
        """What each part gives, by one product where they are one matrix."""
        if at + whole not in self._matrices:
            return [self._linear(at + part, x) for part in parts]
        d = self.decoder
        borders = [d.query_size, d.query_size + d.kv_size] if parts is QKV else [d.intermediate_size]
        return list(mx.split(self._linear(at + whole, x), borders, axis=-1))


def _mask(count: int, filled: int, window: int) -> mx.array | str | None:
    """What `count` positions behind `filled` see, as MLX's attention takes it; None: everything that they are given."""
    if count == 1:
        return None
    if not window or filled + count <= window:
        return "causal"
    return _seen(count, min(filled + count, window + count - 1), window)


def _seen(count: int, keys: int, window: int) -> mx.array:
    """(count, keys) bool: the last `count` of `keys` positions look at those up to their own, `window` of them."""
    key, at = mx.arange(keys), mx.arange(keys - count, keys)[:, None]
    return (key <= at) & (key > at - window) if window else key <= at


def _product(x: mx.array, rows: Rows, how: Mapping[str, Any], turned: bool) -> mx.array:
    """x times keys, turned, or values."""
    if how:
        levels, scales, biases = rows
        return mx.quantized_matmul(x, levels, scales, biases, transpose=turned, **how)
    return x @ (rows[0].swapaxes(-1, -2) if turned else rows[0])


def _soft_capped(x: mx.array, cap: float) -> mx.array:
    return mx.tanh(x / cap) * cap


def _clipped(x: mx.array, y: mx.array) -> mx.array:
    """x + y where float16 would overflow, as Gemma's residuals do: mlx_lm's own remedy."""
    most = mx.finfo(mx.float16).max
    return mx.clip(x.astype(mx.float32) + y.astype(mx.float32), -most, most).astype(mx.float16)


def _silu(gate: mx.array, up: mx.array) -> mx.array:
    return gate * mx.sigmoid(gate) * up


def _gelu_tanh(gate: mx.array, up: mx.array) -> mx.array:
    inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
    return 0.5 * gate * (1 + mx.tanh(inner)) * up


def _relu2(gate: mx.array, up: mx.array) -> mx.array:
    positive = mx.maximum(gate, 0)
    return positive * positive * up


_GATED: dict[Activation, Any] = {
    Activation.SILU: _silu,
    Activation.GELU_TANH: _gelu_tanh,
    Activation.RELU2: _relu2,
}
