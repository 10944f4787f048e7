"""Faults that were thought of before the checks were read (unseen.py): tokens, text, the loop that makes answers."""

from __future__ import annotations

from mutants.mutant import Mutant

HEAD = """
from edgecore.checkpoint import oracle
from edgecore.contract import generation, sampling
from edgecore_reference.text import OracleSession
"""


def _text(name: str, fault: str, checks: str, hooks: str) -> Mutant:
    return Mutant(name, fault, tuple(checks.split()), HEAD + hooks)


MUTANTS = (
    _text(
        "text_ends_at_a_null",
        "text is handed on as a C string: what follows a NUL is lost",
        "text.tokenizer",
        r"""
@instead(OracleSession, "tokenize")
def tokenize(was, self, text, add_special=True, parse_special=False):
    return was(self, text.split("\0")[0], add_special, parse_special)
""",
    ),
    _text(
        "long_text_cut",
        "the buffer for token ids has 512 places, and what does not fit is dropped",
        "text.tokenizer",
        """
@instead(OracleSession, "tokenize")
def tokenize(was, self, text, add_special=True, parse_special=False):
    return was(self, text, add_special, parse_special)[:512]
""",
    ),
    _text(
        "long_pieces_cut",
        "the buffer for a token's text has eight places",
        "text.detokenize",
        """
@instead(OracleSession, "token_bytes")
def token_bytes(was, self, token):
    return was(self, token)[:8]
""",
    ),
    _text(
        "detokenize_strips",
        "text of tokens loses the white space at its ends",
        "text.detokenize",
        """
@instead(OracleSession, "detokenize")
def detokenize(was, self, tokens):
    return was(self, tokens).strip()
""",
    ),
    _text(
        "two_beginnings_in_chat",
        "the prompt of a chat gets a token for the beginning of text, and its template has one already",
        "text.chat",
        """
@instead(OracleSession, "encode_chat")
def encode_chat(was, self, messages):
    ids = was(self, messages)
    first = self.tokenize("", True, False)
    return [*(first or ids[:1]), *ids]
""",
    ),
    _text(
        "messages_may_command",
        "special tokens that a message spells act in the prompt of a chat",
        "text.chat",
        """
@instead(OracleSession, "encode_chat")
def encode_chat(was, self, messages):
    return self.tokenize(self.apply_chat(messages), False, True)
""",
    ),
    _text(
        "stop_string_begins_in_the_prompt",
        "a stop string that the prompt's end and the answer's beginning make together stops the answer",
        "text.stop",
        """
@instead(generation, "_pieces")
def pieces(was, session, tokens, max_tokens, sample, stream, reuse_cache):
    stream.push(session.token_bytes(tokens[-1]))
    stream.stopped = False
    return was(session, tokens, max_tokens, sample, stream, reuse_cache)
""",
    ),
    _text(
        "text_before_the_stop_lost",
        "the piece in which a stop string completes is dropped whole, and what stood before it too",
        "text.stop",
        """
@instead(generation.TextStream, "push")
def push(was, self, data, final=False):
    text = was(self, data, final)
    return "" if self.stopped else text
""",
    ),
    _text(
        "sixteen_tokens_by_default",
        "without max_tokens an answer has 16 tokens, and says that this is its length",
        "text.length",
        """
@instead(OracleSession, "generate")
def generate(was, self, tokens, *, max_tokens=None, **how):
    room = self.context_length - len(tokens)
    return was(self, tokens, max_tokens=min(16, room) if max_tokens is None else max_tokens, **how)
""",
    ),
    _text(
        "greedy_by_default",
        "without settings for sampling an answer is greedy",
        "text.sampling",
        """
@instead(OracleSession, "generate")
def generate(was, self, tokens, *, sampling=None, **how):
    return was(self, tokens, sampling=sampling or Sampling(temperature=0.0), **how)
""",
    ),
    _text(
        "no_seed_is_zero",
        "a seed of 0 counts as none",
        "text.seeds",
        """
@instead(sampling.Sampler, "__init__")
def init(was, self, how):
    was(self, replace(how, seed=how.seed or None))
""",
    ),
    _text(
        "seed_of_sixteen_bits",
        "of a seed the lower 16 bits count",
        "text.seeds",
        """
@instead(sampling.Sampler, "__init__")
def init(was, self, how):
    was(self, how if how.seed is None else replace(how, seed=how.seed % 65536))
""",
    ),
    _text(
        "one_seed_means_none",
        "the largest seed of 32 bits is the runtime's sign for a random one",
        "text.seeds",
        """
@instead(sampling.Sampler, "__init__")
def init(was, self, how):
    was(self, replace(how, seed=None) if how.seed == 2**32 - 1 else how)
""",
    ),
    _text(
        "temperature_twice",
        "logits are divided by the temperature twice",
        "text.sampling",
        """
@instead(sampling.Sampler, "__init__")
def init(was, self, how):
    was(self, replace(how, temperature=how.temperature**2))
""",
    ),
    _text(
        "one_more_than_top_k",
        "top_k keeps k + 1 tokens",
        "text.sampling",
        """
@instead(sampling.Sampler, "__init__")
def init(was, self, how):
    was(self, replace(how, top_k=how.top_k + 1 if how.top_k else 0))
""",
    ),
    _text(
        "top_p_leaves_out_the_last",
        "top_p leaves out the token that reaches p",
        "text.sampling",
        """
@instead(sampling.Sampler, "__call__")
def call(was, self, logits):
    how = self.sampling
    if how.temperature == 0 or how.top_p == 1:
        return was(self, logits)
    keep = np.argsort(-logits, kind="stable")[: how.top_k or logits.size]
    reached = np.cumsum(sampling._softmax(logits[keep].astype(np.float64))) < how.top_p
    keep = keep[: max(1, int(reached.sum()))]
    scores = logits[keep].astype(np.float64)
    return int(self._random.choice(keep, p=sampling._softmax(scores / how.temperature)))
""",
    ),
    _text(
        "top_p_before_top_k",
        "top_p is taken of all tokens, and top_k of what it leaves",
        "text.sampling",
        """
@instead(sampling.Sampler, "__call__")
def call(was, self, logits):
    how = self.sampling
    if how.temperature == 0 or how.top_p == 1 or not how.top_k:
        return was(self, logits)
    keep = np.argsort(-logits, kind="stable")
    cumulative = np.cumsum(sampling._softmax(logits[keep].astype(np.float64)))
    keep = keep[: int(np.searchsorted(cumulative, how.top_p)) + 1][: how.top_k]
    scores = logits[keep].astype(np.float64)
    return int(self._random.choice(keep, p=sampling._softmax(scores / how.temperature)))
""",
    ),
    _text(
        "top_p_in_the_order_of_ids",
        "top_p adds up probabilities in the order of ids, not of likelihood",
        "text.sampling",
        """
@instead(sampling.Sampler, "__call__")
def call(was, self, logits):
    how = self.sampling
    if how.temperature == 0 or how.top_p == 1:
        return was(self, logits)
    p = sampling._softmax(logits.astype(np.float64))
    keep = int(np.searchsorted(np.cumsum(p), how.top_p)) + 1
    return int(self._random.choice(keep, p=p[:keep] / p[:keep].sum()))
""",
    ),
    _text(
        "min_p_left_on",
        "the runtime's min_p of 0.05 is on, though nobody asked for it",
        "text.sampling",
        """
@instead(sampling.Sampler, "__call__")
def call(was, self, logits):
    likely = logits >= logits.max() + np.log(0.05)
    return was(self, np.where(likely, logits, np.float32(-1e9)))
""",
    ),
    _text(
        "repetition_penalty_left_on",
        "the runtime's repetition penalty of 1.1 is on, though nobody asked for it",
        "text.greedy",
        """
@instead(generation, "_pieces")
def pieces(was, session, tokens, max_tokens, sample, stream, reuse_cache):
    def penalized(logits):
        seen = list(set(session.context().tokens[-64:]))
        logits = logits.copy()
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / 1.1, logits[seen] * 1.1)
        return sample(logits)
    return was(session, tokens, max_tokens, penalized, stream, reuse_cache)
""",
    ),
)
