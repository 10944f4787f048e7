"""Where byte-level BPE may not merge across: llama.cpp names the rules (`tokenizer.ggml.pre`), tokenizer.json has them.

Both directions are needed: a GGUF file gives the name, and a GGUF writer must find the name for a tokenizer.json.
Rules as in llama.cpp's `llm_tokenizer_bpe`, regular expressions as in the original tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, pre_tokenizers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORDS = r"[^\r\n\p{L}\p{N}]?" + _UPPER + "*" + _LOWER + "+", r"[^\r\n\p{L}\p{N}]?" + _UPPER + "+" + _LOWER + "*"
_TEKKEN = "|".join(_WORDS) + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTED = [word + r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?" for word in _WORDS]
_GPT4O = "|".join(_CONTRACTED) + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """Split at each rule in turn, every match a piece of its own."""

    rules: tuple[str, ...]
    ignore_merges: bool = False
    """A piece that is a token stays whole, whatever the merges say."""
    add_bos: bool = False
    """llama.cpp's default where the file does not say."""

    def build(self) -> pre_tokenizers.PreTokenizer:
        splits = [pre_tokenizers.Split(Regex(rule), "isolated") for rule in self.rules]
        return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_DIGITS = PreTokenizer((r"\p{N}", GPT2))
PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "gpt-2": PreTokenizer((GPT2,)),
    "mpt": PreTokenizer((GPT2,)),
    "olmo": PreTokenizer((GPT2,)),
    "phi-2": PreTokenizer((GPT2,)),
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "codeshell": _DIGITS,
    "exaone": _DIGITS,
    "llama-bpe": PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
    "dbrx": PreTokenizer((_LLAMA3,)),
    "smaug-bpe": PreTokenizer((_LLAMA3,)),
    "qwen2": PreTokenizer((_QWEN2,)),
    "stablelm2": PreTokenizer((_QWEN2,)),
    "deepseek-r1-qwen": PreTokenizer((_QWEN2,)),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o": PreTokenizer((_GPT4O,)),
}
"""By llama.cpp's name. Of names with equal rules the first is the one to write."""
SYNONYMS = {
    "llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe", "pixtral": "llama-bpe",
    "gpt2": "gpt-2", "llama4": "gpt-4o",
}  # fmt: skip


def name_of(pre_tokenizer: Any, ignore_merges: bool) -> str:
    """llama.cpp's name for the `pre_tokenizer` object of a tokenizer.json, empty where it has none."""
    rules = _rules(pre_tokenizer)
    for name, known in PRE_TOKENIZERS.items():
        if rules == known.rules and ignore_merges == known.ignore_merges:
            return name
    return next((name for name, known in PRE_TOKENIZERS.items() if rules == known.rules), "")


def _rules(spec: Any) -> tuple[str, ...] | None:
    """The splitting rules of a tokenizer.json's pre-tokenizer in one canonical spelling; None where it has others."""
    if not isinstance(spec, Mapping):
        return None
    match spec.get("type"):
        case "Sequence":
            parts = [_rules(part) for part in spec.get("pretokenizers", [])]
            return None if None in parts else tuple(rule for part in parts for rule in part or ())
        case "ByteLevel" if not spec.get("add_prefix_space"):
            return (GPT2,) if spec.get("use_regex", True) else ()
        case "Digits" if spec.get("individual_digits"):
            return (r"\p{N}",)
        case "Split" if spec.get("behavior") == "Isolated" and not spec.get("invert"):
            pattern = spec.get("pattern")
            rule = pattern.get("Regex") if isinstance(pattern, Mapping) else None
            return (rule,) if isinstance(rule, str) else None
    return None
