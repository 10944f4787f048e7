"""Faults in the forward pass: everything works, and the numbers are wrong."""

from __future__ import annotations

from mutants.mutant import Mutant

ORACLE = "from edgecore.checkpoint import oracle\n"


def _numbers(name: str, fault: str, hooks: str, family: str = "llama", *checks: str, missing: str = "") -> Mutant:
    cells = {"family": family} if family else {}
    return Mutant(name, fault, checks or ("text.logits",), ORACLE + hooks, cells=cells, missing=missing)


MUTANTS = (
    _numbers(
        "rope_off_by_one",
        "rotary positions of what follows the first call are one too far",
        """
@instead(oracle, "_turns")
def turns(was, rope, start, count):
    return was(rope, start + (start > 0), count)
""",
        "",
        "text.prefill",
    ),
    _numbers(
        "query_key_permuted",
        "rows of the q and k matrices are taken for llama.cpp's interleaved order",
        """
from edgecore.checkpoint import half_rotation_order

@instead(oracle.Oracle, "_weight")
def weight(was, self, name):
    found = was(self, name)
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = self.decoder.heads if "q_proj" in name else self.decoder.kv_heads
        found = found[half_rotation_order(heads, self.decoder.head_dim)]
    return found
""",
    ),
    _numbers(
        "key_rows_alone_permuted",
        "rows of the k matrix alone are in another order than the rotation wants",
        """
from edgecore.checkpoint import half_rotation_order

@instead(oracle.Oracle, "_weight")
def weight(was, self, name):
    found = was(self, name)
    if name.endswith("k_proj.weight"):
        found = found[half_rotation_order(self.decoder.kv_heads, self.decoder.head_dim)]
    return found
""",
    ),
    _numbers(
        "grouped_heads_interleaved",
        "query heads share key/value heads in turns, not in runs",
        """
@instead(oracle.Oracle, "_weight")
def weight(was, self, name):
    found = was(self, name)
    d = self.decoder
    if name.endswith("q_proj.weight") and d.heads > d.kv_heads:
        rows = found.reshape(d.kv_heads, -1, d.head_dim, found.shape[1])
        found = rows.swapaxes(0, 1).reshape(found.shape)
    return found
""",
    ),
    _numbers(
        "causal_mask_off_by_one",
        "every position of a prompt sees the one after it",
        """
@instead(oracle, "_hidden")
def hidden(was, start, count, window):
    return was(start + 1, count, window)[:, : start + count]
""",
    ),
    _numbers(
        "norm_epsilon_wrong",
        "RMSNorm adds an epsilon that is not the model's",
        """
@instead(oracle, "_rms_norm")
def rms_norm(was, x, weight, epsilon):
    return was(x, weight, 3e-2)
""",
    ),
    _numbers(
        "last_norm_left_out",
        "the norm before the output matrix has no weights",
        """
@instead(oracle.Oracle, "_weight")
def weight(was, self, name):
    found = was(self, name)
    return np.ones_like(found) if name == "model.norm.weight" else found
""",
    ),
    _numbers(
        "cache_in_eight_bits",
        "keys and values are kept in float8, and conditions say float32",
        """
import ml_dtypes

@instead(oracle.KVCache, "put")
def put(was, self, layer, start, keys, values):
    coarse = [x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) for x in (keys, values)]
    return was(self, layer, start, *coarse)
""",
    ),
    _numbers(
        "logits_in_eight_bits",
        "logits are rounded to float8 on the way out",
        """
import ml_dtypes

@instead(oracle.Oracle, "_capped")
def capped(was, self, logits):
    return was(self, logits).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
""",
    ),
    _numbers(
        "window_ignored",
        "sliding windows are not slid: every position sees the whole past",
        """
from edgecore.checkpoint import Decoder

@instead(Decoder, "layer_window")
def layer_window(was, self, layer):
    return 0
""",
        "gemma3",
    ),
    _numbers(
        "window_ignored_where_all_layers_have_it",
        "a window is slid only where the model has layers without one",
        """
from edgecore.checkpoint import Decoder

@instead(Decoder, "layer_window")
def layer_window(was, self, layer):
    return was(self, layer) if self.windowed else 0
""",
        "mistral",
    ),
    _numbers(
        "squared_relu_taken_for_silu",
        "MLPs of a model with squared ReLU are computed with SiLU, as the family's plain models have it",
        """
oracle._ACTIVATIONS = {**oracle._ACTIVATIONS, oracle.Activation.RELU2: oracle._silu}
""",
        "bitnet",
    ),
    _numbers(
        "biases_dropped",
        "q, k and v projections lose their biases",
        """
@instead(oracle, "_linear")
def linear(was, block, name, x):
    return x @ block[name + ".weight"].T
""",
        "qwen2",
    ),
    _numbers(
        "query_key_norm_left_out",
        "heads of q and k are not normed",
        """
@instead(oracle.Oracle, "_block_norm")
def block_norm(was, self, block, name, x):
    return x if name.endswith(("q_norm", "k_norm")) else was(self, block, name, x)
""",
        "qwen3",
    ),
    _numbers(
        "embedding_scale_dropped",
        "embeddings are not multiplied by the root of the hidden size",
        """
@instead(oracle.Oracle, "_embed")
def embed(was, self, tokens):
    return was(self, tokens) / np.float32(self.decoder.embedding_scale)
""",
        "gemma3",
    ),
    _numbers(
        "one_rope_for_all_layers",
        "windowed layers turn by the frequencies of the others",
        """
from edgecore.checkpoint import Decoder

@instead(Decoder, "layer_rope")
def layer_rope(was, self, layer):
    return self.rope
""",
        "gemma3",
    ),
    _numbers(
        "norms_offset_forgotten",
        "norm weights are used as the family stores them: without the one that belongs to them",
        """
@instead(oracle, "_rms_norm")
def rms_norm(was, x, weight, epsilon):
    return was(x, weight - 1, epsilon)
""",
        "gemma3",
    ),
    _numbers(
        "rope_stretching_ignored",
        "rotary frequencies are the plain ones, though the model was trained with stretched ones",
        """
from edgecore.checkpoint import Rope

@instead(Rope, "frequencies")
def frequencies(was, self, positions=0):
    return self._plain()
""",
    ),
    _numbers(
        "short_factors_for_long_texts",
        "the second set of rotary frequencies, for long texts, is never taken",
        """
from edgecore.checkpoint import Rope

@instead(Rope, "is_long")
def is_long(was, self, positions):
    return False
""",
        "phi3",
    ),
    _numbers(
        "keys_kept_across_the_border",
        "keys that were turned by the first set of rotary factors stay as they are when a text grows beyond its range",
        """
@instead(oracle.OracleContext, "prefill")
def prefill(was, self, tokens):
    self._long = self._oracle.decoder.rope.is_long(self.position + len(tokens))
    return was(self, tokens)
""",
        "phi3",
        "text.prefill",
        "text.rewind",
    ),
    _numbers(
        "gate_and_up_swapped",
        "the halves of the fused MLP matrix are taken for each other",
        """
@instead(oracle.Oracle, "_weight")
def weight(was, self, name):
    other = {"gate": "up", "up": "gate"}.get(name.partition("mlp.")[2].partition("_")[0], "")
    at = name.partition("mlp.")[0]
    return was(self, f"{at}mlp.{other}_proj.weight" if other else name)
""",
        "phi3",
    ),
    _numbers(
        "inner_norms_left_out",
        "the norms before the output and the down projection are left out",
        """
@instead(oracle.Oracle, "_block_norm")
def block_norm(was, self, block, name, x):
    return x if "sub_norm" in name else was(self, block, name, x)
""",
        "bitnet",
    ),
)
