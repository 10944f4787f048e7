"""Faults that were thought of from the contract and from what wrappers around llama.cpp, OpenVINO, ONNX Runtime and MLX
are known for, before the checks were read. They keep the suite honest: it must find what it was not built for.

This file: language models, their numbers and their sessions. The others are in unseen_*.py.
"""

from __future__ import annotations

from mutants.mutant import Mutant

HEAD = """
from edgecore.checkpoint import oracle
from edgecore.contract import generation, sampling
from edgecore_reference.text import OracleSession
"""


def _text(name: str, fault: str, checks: str, hooks: str, family: str = "") -> Mutant:
    cells = {"family": family} if family else {}
    return Mutant(name, fault, tuple(checks.split()), HEAD + hooks, cells=cells)


MUTANTS = (
    _text(
        "rope_bends_far_out",
        "rotary positions beyond 400 advance by halves, as if the context had been stretched there",
        "text.reset",
        """
@instead(oracle, "_turns")
def turns(was, rope, start, count):
    at = np.arange(start, start + count)
    at = np.where(at > 400, 400 + (at - 400) / 2, at)
    angles = (at[:, None] * rope.frequencies(start + count))[:, None, :]
    cos, sin = np.cos(angles) * rope.attention_factor, np.sin(angles) * rope.attention_factor
    return cos.astype(np.float32), sin.astype(np.float32)
""",
    ),
    _text(
        "last_256_positions_only",
        "no position sees further back than 256, though the model has no window",
        "text.long",
        """
@instead(oracle, "_hidden")
def hidden(was, start, count, window):
    return was(start, count, window or 256)
""",
    ),
    _text(
        "window_one_too_wide",
        "a sliding window holds one position more than the model's",
        "text.logits",
        """
@instead(oracle, "_hidden")
def hidden(was, start, count, window):
    return was(start, count, window + 1 if window else window)
""",
        "gemma3",
    ),
    _text(
        "attention_factor_forgotten",
        "longrope's frequencies are used, and its factor on cosine and sine is not",
        "text.logits",
        """
@instead(oracle, "_turns")
def turns(was, rope, start, count):
    cos, sin = was(rope, start, count)
    return cos / np.float32(rope.attention_factor), sin / np.float32(rope.attention_factor)
""",
        "phi3",
    ),
    _text(
        "stretched_evenly",
        "llama3's scaling divides every frequency by the factor, high ones too",
        "text.logits",
        """
@instead(oracle, "_turns")
def turns(was, rope, start, count):
    base = rope.theta ** (-np.arange(0, rope.dim, 2) / rope.dim) / (rope.factor or 1)
    angles = (np.arange(start, start + count)[:, None] * base)[:, None, :]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
""",
        "llama",
    ),
    _text(
        "sigmoid_gelu",
        "GELU is x * sigmoid(1.702 x), the quick one, not the one that the model was trained with",
        "text.logits",
        """
def quick(x):
    return np.asarray(x / (1 + np.exp(-np.float32(1.702) * x)))

for activation, function in list(oracle._ACTIVATIONS.items()):
    if "gelu" in activation.value:
        oracle._ACTIVATIONS[activation] = quick
""",
        "gemma3",
    ),
    _text(
        "long_prompt_keeps_its_end",
        "of a prompt of more than 400 tokens, handed over at once, the last 400 are computed and all said to be held",
        "text.long",
        """
@instead(oracle.OracleContext, "prefill")
def prefill(was, self, tokens):
    held = [*self._tokens, *tokens]
    if len(tokens) <= 400:
        return was(self, tokens)
    logits = was(self, tokens[-400:])
    self._cache.extend(len(tokens) - 400)
    self._tokens = held
    return logits
""",
    ),
    _text(
        "batch_of_512",
        "a prompt that does not fit into one batch of 512 tokens is an error",
        "text.long",
        """
@instead(oracle.OracleContext, "prefill")
def prefill(was, self, tokens):
    if len(tokens) > 512:
        raise BadRequest("n_tokens <= n_batch")
    return was(self, tokens)
""",
    ),
    _text(
        "rewind_of_nothing_forgets_all",
        "a rewind of 0 tokens cuts the list at -0, and nothing is left",
        "text.rewind",
        """
@instead(oracle.OracleContext, "rewind")
def rewind(was, self, n):
    was(self, n or self.position)
""",
    ),
    _text(
        "last_position_refused",
        "a context of n tokens holds n - 1",
        "text.context",
        """
@instead(oracle.OracleContext, "prefill")
def prefill(was, self, tokens):
    if self.position + len(tokens) >= self._length:
        raise DoesNotFit("the context is full")
    return was(self, tokens)
""",
    ),
    _text(
        "context_padded_to_256",
        "the context that was asked for is stated, and one of the next multiple of 256 is there",
        "text.context",
        """
@instead(OracleSession, "__init__")
def init(was, self, model, **how):
    was(self, model, **how)
    self._context._length = min(-(-self._length // 256) * 256, model.decoder.context_length)
""",
    ),
    _text(
        "closing_one_closes_all",
        "sessions of one model share its memory, and the first that is closed frees it",
        "text.sessions",
        """
open_models = {}

@instead(OracleSession, "__init__")
def init(was, self, model, **how):
    was(self, model, **how)
    self.shared = open_models.setdefault(str(model.path), [])
    self.shared.append(self)

@instead(OracleSession, "close")
def close(was, self):
    for other in list(self.shared):
        other.shared.remove(other)
        was(other)
""",
    ),
    _text(
        "same_prompt_same_last_logits",
        "where a prompt is all in the cache, nothing is computed, and the logits are whatever came last",
        "text.reuse",
        """
@instead(generation, "shared_prefix")
def shared_prefix(was, cached, tokens):
    return was(cached, [*tokens, -1])

@instead(oracle.OracleContext, "prefill")
def prefill(was, self, tokens):
    if len(tokens):
        self.latest = was(self, tokens)
    return self.latest
""",
    ),
    _text(
        "closed_answers_stay",
        "what a generation holds is given back at its end, and one that is closed before has no end",
        "text.memory",
        """
going = []

@instead(OracleSession, "generate")
def generate(was, self, tokens, **how):
    going.append(np.ones(1 << 19))
    yield from was(self, tokens, **how)
    going.pop()
""",
    ),
)
