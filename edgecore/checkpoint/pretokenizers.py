"""Where byte-level BPE may not merge across: llama.cpp names the rules (`tokenizer.ggml.pre`), tokenizer.json has them.

Both directions are needed: a GGUF file gives the name, and a GGUF writer must find the name for a tokenizer.json.
Rules as in llama.cpp's `llm_tokenizer_bpe`, regular expressions as in the original tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import pre_tokenizers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = _QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
_HAN = r"[一-龥ࠀ-一가-퟿]+"
_LATIN = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-"
    "\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
"""DeepSeek's letters; escaped, because editors compose some of them into others."""
_MARKED = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|""" + "[^\r\n" + r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+" + "[\r\n]*|" + r"\s*" + "[\r\n]+|" + r"\s+(?!\S)|\s+"
)
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
    nfc: bool = False
    """The original tokenizer composes characters first (transformers' classes of these models; llama.cpp does not)."""

    def build(self) -> pre_tokenizers.PreTokenizer:
        from tokenizers import Regex, pre_tokenizers

        splits = [pre_tokenizers.Split(Regex(rule), "isolated") for rule in self.rules]
        return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_WORDS_ONLY = PreTokenizer((GPT2,))
_NEOX = PreTokenizer((GPT2,), nfc=True)
_DIGITS = PreTokenizer((r"\p{N}", GPT2))
PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "gpt-2": _WORDS_ONLY,
    "phi-2": _WORDS_ONLY,
    "mpt": _NEOX,
    "olmo": _NEOX,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": PreTokenizer((r"\p{N}", GPT2), nfc=True),
    "codeshell": _DIGITS,
    "exaone": _DIGITS,
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]")),
    "llama-bpe": PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
    "dbrx": PreTokenizer((_LLAMA3,)),
    "smaug-bpe": PreTokenizer((_LLAMA3,)),
    "chatglm-bpe": PreTokenizer((_LLAMA3,)),
    "glm4": PreTokenizer((_LLAMA3,), ignore_merges=True),
    "qwen2": PreTokenizer((_QWEN2,), nfc=True),
    "qwen35": PreTokenizer((_QWEN35,)),  # decomposed text stays so in the vectors of llama.cpp's authors
    "deepseek-r1-qwen": PreTokenizer((_QWEN2,)),
    "stablelm2": PreTokenizer((_QWEN2,)),
    "deepseek-llm": PreTokenizer(
        ("[\r\n]", rf"\s?[{_LATIN}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _HAN, r"\p{N}+")
    ),
    "deepseek-coder": PreTokenizer(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}")),
    "deepseek-v3": PreTokenizer((r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _MARKED)),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o": PreTokenizer((_GPT4O,)),
}
"""By llama.cpp's name. Of names with equal rules the first is the one to write."""
SYNONYMS = {
    "llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe", "falcon-h1": "llama-bpe",
    "lfm2": "llama-bpe", "pixtral": "llama-bpe", "exaone4": "gpt-2",
    "modern-bert": "gpt-2", "llama4": "gpt-4o", "megrez": "qwen2", "minerva-7b": "smollm",
}  # fmt: skip


def name_of(pre_tokenizer: Any, ignore_merges: bool, normalizer: Any = None) -> str:
    """llama.cpp's name for the `pre_tokenizer` and `normalizer` objects of a tokenizer.json, empty where it has none.

    Rules decide; of names that share them the one that also agrees in merging and in composing characters (NFC)."""
    rules, nfc = _rules(pre_tokenizer), isinstance(normalizer, Mapping) and normalizer.get("type") == "NFC"
    alike = [(name, known) for name, known in PRE_TOKENIZERS.items() if rules == known.rules]
    agreeing = [(known.ignore_merges == ignore_merges) * 2 + (known.nfc == nfc) for _, known in alike]
    return alike[agreeing.index(max(agreeing))][0] if alike else ""


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
