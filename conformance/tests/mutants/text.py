"""Faults of contexts and sessions: what is remembered, what is forgotten, what is shared."""

from __future__ import annotations

from edgecore_conformance.outcomes import Outcome
from mutants.mutant import Mutant

ORACLE = "from edgecore.checkpoint import oracle\nfrom edgecore_reference.text import OracleSession\n"


def _text(name: str, fault: str, checks: str, hooks: str, missing: str = "") -> Mutant:
    return Mutant(name, fault, tuple(checks.split()), ORACLE + hooks, missing=missing)


MUTANTS = (
    _text(
        "stale_cache_after_long_prompt",
        "what a prompt of more than 200 tokens left in the KV cache is not written over by the next one",
        "text.reset",
        """
@instead(oracle.KVCache, "put")
def put(was, self, layer, start, keys, values):
    end = start + len(keys)
    if end <= getattr(self, "stale", 0):
        return self._keys[layer, :, :end], self._values[layer, :, :end]
    if end > 200 and layer == len(self._keys) - 1:
        self.stale = end
    return was(self, layer, start, keys, values)
""",
    ),
    _text(
        "cache_lost_when_it_grows",
        "a KV cache that grows begins empty",
        "text.prefill",
        """
@instead(oracle.KVCache, "extend")
def extend(was, self, count):
    had = self._keys.shape[2]
    start = was(self, count)
    if self._keys.shape[2] > had:
        self._keys[:, :, :start] = 0
        self._values[:, :, :start] = 0
    return start
""",
    ),
    _text(
        "chunks_forget_the_past",
        "a second prefill after the first does not see what came before it",
        "text.prefill",
        """
@instead(oracle.OracleContext, "prefill")
def prefill(was, self, tokens):
    if len(tokens) > 1:
        before, self._tokens = self._tokens, []
        logits = was(self, tokens)
        self._tokens = before + self._tokens
        return logits
    return was(self, tokens)
""",
    ),
    _text(
        "step_on_another_path",
        "decoding runs on rougher kernels than the scoring that quality is judged by",
        "text.prefill",
        """
@instead(oracle.OracleContext, "step")
def step(was, self, token):
    return np.round(was(self, token))
""",
    ),
    _text(
        "score_forgets_a_row",
        "score leaves out the first row of every chunk but the first",
        "text.score",
        """
@instead(OracleSession, "score")
def score(was, self, tokens):
    for number, chunk in enumerate(was(self, tokens)):
        yield chunk[number > 0 :]
""",
    ),
    _text(
        "score_goes_on_from_the_context",
        "score does not empty the context first: rows are those of a longer text",
        "text.score",
        """
@instead(OracleSession, "score")
def score(was, self, tokens):
    before = list(self._context.tokens)[: self._length - len(tokens)]
    for chunk in self._oracle.score([*before, *tokens], 1):
        if not before:
            yield chunk
        before = before[1:]
""",
    ),
    _text(
        "remembered_by_length",
        "logits are remembered by a prompt's length and its last token",
        "text.fresh",
        """
table = {}

@instead(oracle.OracleContext, "prefill")
def prefill(was, self, tokens):
    logits = was(self, tokens)
    return table.setdefault((self.position, tokens[-1]), logits)
""",
    ),
    _text(
        "remembered_by_its_words",
        "logits are remembered by a prompt's set of tokens: their order is lost",
        "text.fresh",
        """
table = {}

@instead(oracle.OracleContext, "prefill")
def prefill(was, self, tokens):
    logits = was(self, tokens)
    return table.setdefault(tuple(sorted(self._tokens)), logits)
""",
    ),
    _text(
        "rewind_one_too_few",
        "a rewind forgets one token too few",
        "text.rewind",
        """
@instead(oracle.OracleContext, "rewind")
def rewind(was, self, n):
    was(self, n - (0 < n < self.position))
""",
    ),
    _text(
        "rewind_keeps_the_position",
        "after a rewind, rotary positions go on as if nothing had been forgotten",
        "text.rewind",
        """
@instead(oracle.OracleContext, "rewind")
def rewind(was, self, n):
    whole = n == self.position
    self.behind = 0 if whole else getattr(self, "behind", 0) + n
    was(self, n)

@instead(oracle, "_turns")
def turns(was, rope, start, count):
    return was(rope, start + late[0], count)

late = [0]

@instead(oracle.OracleContext, "prefill")
def prefill(was, self, tokens):
    late[0] = getattr(self, "behind", 0)
    try:
        return was(self, tokens)
    finally:
        late[0] = 0
""",
    ),
    _text(
        "rewind_too_far_accepted",
        "a rewind of more tokens than there are empties the context instead of raising",
        "text.requests",
        """
@instead(oracle.OracleContext, "rewind")
def rewind(was, self, n):
    was(self, min(n, self.position))
""",
    ),
    _text(
        "order_of_calls_matters",
        "the fourth reset and every later one leave the first token in the cache",
        "text.order",
        """
@instead(oracle.OracleContext, "reset")
def reset(was, self):
    self.resets = getattr(self, "resets", 0) + 1
    if self.resets > 3 and self.position:
        self.ghost = self._tokens[:1]
    was(self)

@instead(oracle.OracleContext, "prefill")
def prefill(was, self, tokens):
    ghost, self.ghost = getattr(self, "ghost", []), []
    if not ghost or self.position or len(tokens) + 1 > self._length:
        return was(self, tokens)
    logits = was(self, [*ghost, *tokens])
    self._tokens = list(tokens)
    self._cache.used = len(tokens)
    return logits
""",
    ),
    _text(
        "sampling_sticks",
        "a greedy call after a sampled one samples too",
        "text.order",
        """
from edgecore.contract import sampling

last = []

@instead(sampling.Sampler, "__init__")
def begin(was, self, sampling):
    if sampling.temperature == 0 and last:
        sampling = replace(last[-1], seed=1)
    elif sampling.temperature:
        last.append(sampling)
    was(self, sampling)
""",
    ),
    _text(
        "sessions_share_a_context",
        "two sessions on one model write into one context",
        "text.sessions",
        """
shared = {}

@instead(OracleSession, "context")
def context(was, self):
    return shared.setdefault(str(self._open.path), was(self))
""",
    ),
    _text(
        "answers_from_memory",
        "an answer to a prompt that was seen before comes from a table, whatever the sampling",
        "text.seeds",
        """
table = {}

@instead(OracleSession, "generate")
def generate(was, self, tokens, **how):
    room = how.get("max_tokens")
    key = (tuple(tokens), room)
    if key not in table:
        table[key] = list(was(self, tokens, **how))
    return iter(table[key])
""",
    ),
    _text(
        "reuse_compares_lengths_only",
        "with reuse_cache, whatever the context holds counts as the prompt's beginning",
        "text.reuse",
        """
from edgecore.contract import generation

@instead(generation, "shared_prefix")
def shared_prefix(was, cached, tokens):
    return min(len(cached), len(tokens) - 1)
""",
    ),
    _text(
        "prompt_cut_in_silence",
        "a prompt that does not fit loses its beginning",
        "text.context",
        """
@instead(OracleSession, "generate")
def generate(was, self, tokens, **how):
    room = self.context_length - (how.get("max_tokens") or 1)
    return was(self, tokens[-max(1, room):], **how)

@instead(oracle.OracleContext, "prefill")
def prefill(was, self, tokens):
    return was(self, tokens[-max(1, self._length - self.position):])
""",
    ),
    _text(
        "context_slides",
        "a full context forgets its older half instead of raising",
        "text.context",
        """
@instead(oracle.OracleContext, "step")
def step(was, self, token):
    if self.position + 1 > self._length:
        kept = self._tokens[self._length // 2:]
        self.reset()
        self.prefill(kept)
    return was(self, token)
""",
    ),
    _text(
        "context_length_ignored",
        "a session of 64 tokens was asked for, and one of all that the model can was opened",
        "text.context_length",
        """
@instead(OracleSession, "__init__")
def begin(was, self, model, *, context_length, **how):
    was(self, model, context_length=None, **how)
""",
    ),
    _text(
        "failed_prefill_leaves_tokens",
        "a prefill that did not fit leaves its tokens in the context",
        "text.context",
        """
@instead(oracle.OracleContext, "prefill")
def prefill(was, self, tokens):
    try:
        return was(self, tokens)
    except DoesNotFit:
        if self.position + 1 < self._length:
            was(self, tokens[: self._length - self.position])
        raise
""",
    ),
    _text(
        "unknown_token_becomes_zero",
        "an id outside the vocabulary is answered as if it were id 0: a typed error became a wrong answer",
        "text.requests",
        """
@instead(oracle.OracleContext, "prefill")
def prefill(was, self, tokens):
    known = range(self._oracle.decoder.vocab_size)
    return was(self, [t if t in known else 0 for t in tokens])
""",
    ),
    _text(
        "closing_gives_nothing_back",
        "weights of every session that was open stay in memory",
        "text.memory",
        """
held = []

@instead(OracleSession, "close")
def close(was, self):
    held.append((self._oracle, {n: np.array(t.read()) for n, t in self._oracle._tensors.items()}))
    was(self)
""",
    ),
    Mutant(
        "hangs_on_a_long_prompt",
        "a prompt of more than 16 tokens never returns",
        ("text.logits",),
        ORACLE
        + """
import time

@instead(oracle.Oracle, "forward")
def forward(was, self, tokens, cache):
    while len(tokens) > 16:
        time.sleep(0.1)
    return was(self, tokens, cache)
""",
        cells={"family": "llama"},
        outcomes=(Outcome.TIMEOUT,),
        seconds=4,
    ),
    Mutant(
        "dies_on_a_long_prompt",
        "a prompt of more than 16 tokens ends the process",
        ("text.logits",),
        ORACLE
        + """
import os

@instead(oracle.Oracle, "forward")
def forward(was, self, tokens, cache):
    if len(tokens) > 16:
        os.abort()
    return was(self, tokens, cache)
""",
        cells={"family": "llama"},
        outcomes=(Outcome.CRASHED,),
    ),
)
