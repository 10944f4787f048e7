"""Faults between text and tokens, and in the loop that makes answers."""

from __future__ import annotations

from mutants.mutant import Mutant

HEAD = "from edgecore.contract import generation, sampling\nfrom edgecore_reference.text import OracleSession\n"


def _words(name: str, fault: str, checks: str, hooks: str, missing: str = "", family: str = "") -> Mutant:
    cells = {"family": family} if family else {}
    return Mutant(name, fault, tuple(checks.split()), HEAD + hooks, cells=cells, missing=missing)


MUTANTS = (
    _words(
        "leading_space_dropped",
        "the tokenizer drops a leading space",
        "text.tokenizer",
        """
@instead(OracleSession, "tokenize")
def tokenize(was, self, text, add_special=True, parse_special=False):
    return was(self, text.lstrip(" "), add_special, parse_special)
""",
    ),
    _words(
        "line_ends_normalized",
        "the tokenizer takes CR LF for LF",
        "text.tokenizer",
        r"""
@instead(OracleSession, "tokenize")
def tokenize(was, self, text, add_special=True, parse_special=False):
    return was(self, text.replace("\r\n", "\n"), add_special, parse_special)
""",
    ),
    _words(
        "text_composed",
        "the tokenizer composes characters that the model's own does not (NFC)",
        "text.tokenizer",
        """
import unicodedata

@instead(OracleSession, "tokenize")
def tokenize(was, self, text, add_special=True, parse_special=False):
    return was(self, unicodedata.normalize("NFC", text), add_special, parse_special)
""",
    ),
    _words(
        "text_not_composed",
        "the tokenizer takes text as it comes, though the model's own composes characters (NFC)",
        "text.tokenizer",
        """
@instead(OracleSession, "tokenize")
def tokenize(was, self, text, add_special=True, parse_special=False):
    if self._open.tokenizer.model == "gpt2":
        self._open.tokenizer._engine.normalizer = None
    return was(self, text, add_special, parse_special)
""",
        family="qwen2",
    ),
    _words(
        "add_special_ignored",
        "the token that the model wants at the start is never added",
        "text.tokenizer",
        """
@instead(OracleSession, "tokenize")
def tokenize(was, self, text, add_special=True, parse_special=False):
    return was(self, text, False, parse_special)
""",
    ),
    _words(
        "special_tokens_always_parsed",
        "special tokens that stand in a text act, asked for or not",
        "text.tokenizer",
        """
@instead(OracleSession, "tokenize")
def tokenize(was, self, text, add_special=True, parse_special=False):
    return was(self, text, add_special, True)
""",
    ),
    _words(
        "special_tokens_never_parsed",
        "special tokens stay text even where they were asked for",
        "text.tokenizer",
        """
@instead(OracleSession, "tokenize")
def tokenize(was, self, text, add_special=True, parse_special=False):
    return was(self, text, add_special, False)
""",
    ),
    _words(
        "space_behind_special_tokens",
        "a space is put before every part of a text, where the model's tokenizer puts one before the first alone",
        "text.tokenizer text.chat",
        r"""
import re

@instead(OracleSession, "tokenize")
def tokenize(was, self, text, add_special=True, parse_special=False):
    if parse_special and "Metaspace" in self._open.tokenizer.to_json() and self._open.tokenizer.add_space_prefix:
        text = re.sub("(</?s>)(?=[^<])", r"\1 ", text)
    return was(self, text, add_special, parse_special)
""",
        family="mistral",
    ),
    _words(
        "bytes_of_a_token_stripped",
        "a token's bytes lose their leading space",
        "text.detokenize",
        """
@instead(OracleSession, "token_bytes")
def token_bytes(was, self, token):
    return was(self, token).removeprefix(b" ")
""",
    ),
    _words(
        "chat_without_its_turn",
        "the chat template is rendered without the opening of the answer",
        "text.chat",
        """
@instead(OracleSession, "apply_chat")
def apply_chat(was, self, messages):
    text = was(self, messages)
    return text[: text.rstrip().rfind("<")] if "<" in text else text[:-1]
""",
    ),
    _words(
        "chat_drops_the_system_message",
        "messages of role system are left out",
        "text.chat",
        """
@instead(OracleSession, "apply_chat")
def apply_chat(was, self, messages):
    return was(self, [m for m in messages if m["role"] != "system"])
""",
    ),
    _words(
        "end_of_text_dropped",
        "no token ends a generation",
        "text.end",
        """
@instead(OracleSession, "eos_ids")
def eos_ids(was, self):
    return frozenset()
""",
    ),
    _words(
        "end_of_text_run_over",
        "generation goes on after the token that ends it",
        "text.end",
        """
@instead(OracleSession, "generate")
def generate(was, self, tokens, **how):
    kind = type("Endless", (type(self),), {"eos_ids": frozenset()})
    self.__class__ = kind
    try:
        yield from was(self, tokens, **how)
    finally:
        self.__class__ = kind.__mro__[1]
""",
    ),
    _words(
        "characters_split",
        "each token is decoded on its own, so a character of two tokens becomes two of U+FFFD",
        "text.streaming",
        """
@instead(generation.TextStream, "push")
def push(was, self, data, final=False):
    text = data.decode("utf-8", "replace")
    return was(self, text.encode(), final)
""",
    ),
    _words(
        "withheld_text_lost",
        "text that was withheld for a possible stop string is forgotten when the answer ends",
        "text.stop",
        """
@instead(generation.TextStream, "push")
def push(was, self, data, final=False):
    return "" if final else was(self, data, final)
""",
    ),
    _words(
        "stop_string_one_token_late",
        "a stop string is seen when the token after it is there",
        "text.stop",
        """
@instead(generation.TextStream, "push")
def push(was, self, data, final=False):
    if getattr(self, "late", False):
        self.stopped = True
        return ""
    shown = was(self, data, final)
    if self.stopped:
        self.stopped, self.late = False, True
    return shown
""",
    ),
    _words(
        "stop_string_shown",
        "the stop string is part of the answer",
        "text.stop",
        """
@instead(generation.TextStream, "push")
def push(was, self, data, final=False):
    shown = was(self, data, final)
    return shown + self._stop[0] if self.stopped else shown
""",
    ),
    _words(
        "stop_string_within_a_token_only",
        "a stop string that spans tokens is not seen",
        "text.stop",
        """
@instead(generation.TextStream, "_possible_start")
def possible_start(was, self, text):
    return 0
""",
    ),
    _words(
        "only_the_first_stop_string",
        "of several stop strings the first alone counts",
        "text.stop",
        """
@instead(generation, "stop_strings")
def stop_strings(was, stop):
    return was(stop)[:1]
""",
    ),
    _words(
        "one_token_too_many",
        "max_tokens is off by one",
        "text.length",
        """
@instead(OracleSession, "generate")
def generate(was, self, tokens, *, max_tokens=None, **how):
    return was(self, tokens, max_tokens=None if max_tokens is None else max_tokens + 1, **how)
""",
    ),
    _words(
        "length_called_end",
        "an answer that was cut at max_tokens says that the model ended it",
        "text.length",
        """
@instead(OracleSession, "generate")
def generate(was, self, tokens, **how):
    for piece in was(self, tokens, **how):
        yield replace(piece, finish="eos") if piece.finish == "length" else piece
""",
    ),
    _words(
        "seed_ignored",
        "every generation draws a seed of its own",
        "text.seeds",
        """
@instead(sampling.Sampler, "__init__")
def begin(was, self, sampling):
    was(self, replace(sampling, seed=None))
""",
    ),
    _words(
        "one_seed_for_all",
        "every seed gives the same answer",
        "text.seeds",
        """
@instead(sampling.Sampler, "__init__")
def begin(was, self, sampling):
    was(self, replace(sampling, seed=7))
""",
    ),
    _words(
        "temperature_ignored",
        "whatever the temperature, it is 0.8",
        "text.sampling",
        """
@instead(sampling.Sampler, "__init__")
def begin(was, self, sampling):
    was(self, replace(sampling, temperature=0.8 if sampling.temperature else 0.0))
""",
    ),
    _words(
        "zero_temperature_samples",
        "temperature 0 is taken for a very small one with noise: not greedy",
        "text.greedy",
        """
@instead(sampling.Sampler, "__init__")
def begin(was, self, sampling):
    was(self, sampling if sampling.temperature else replace(sampling, temperature=0.8, seed=3))
""",
    ),
    _words(
        "second_best_every_eighth",
        "every eighth greedy token is the second best",
        "text.greedy",
        """
@instead(sampling.Sampler, "__call__")
def call(was, self, logits):
    self.calls = getattr(self, "calls", 0) + 1
    if self.sampling.temperature == 0 and self.calls % 8 == 0:
        return int(np.argsort(logits)[-2])
    return was(self, logits)
""",
    ),
    _words(
        "all_at_once",
        "nothing streams: the first piece comes when the last one is there, and nothing is cancelled before",
        "text.cancel",
        """
@instead(OracleSession, "generate")
def generate(was, self, tokens, **how):
    yield from list(was(self, tokens, **how))
""",
    ),
    _words(
        "no_top_k",
        "top_k is ignored",
        "text.sampling",
        """
@instead(sampling.Sampler, "__init__")
def begin(was, self, sampling):
    was(self, replace(sampling, top_k=0))
""",
    ),
    _words(
        "temperature_before_top_p",
        "the temperature is applied before top_p, not after it",
        "text.sampling",
        """
@instead(sampling.Sampler, "__call__")
def call(was, self, logits):
    how = self.sampling
    if not how.temperature:
        return was(self, logits)
    self.sampling = replace(how, temperature=1.0)
    try:
        return was(self, logits / np.float32(how.temperature))
    finally:
        self.sampling = how
""",
    ),
    _words(
        "seeds_beside_each_other",
        "a seed and the next one draw the same numbers",
        "text.seeds",
        """
@instead(sampling.Sampler, "__init__")
def begin(was, self, sampling):
    was(self, replace(sampling, seed=sampling.seed if sampling.seed is None else sampling.seed // 2 * 2))
""",
    ),
)
