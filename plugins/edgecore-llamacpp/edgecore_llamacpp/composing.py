"""Characters are composed (NFC) before text is split, by models whose own tokenizer does so: llama.cpp leaves that out.

Which models they are the neutral tokenizer knows, by the name of the pre-tokenizer in the file: Qwen's are among them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from edgecore.checkpoint.pretokenizers import PRE_TOKENIZERS, SYNONYMS
from edgecore_llamacpp.native import libllama


def composes(metadata: Mapping[str, Any]) -> bool:
    """By a GGUF file's metadata."""
    pre = str(metadata.get("tokenizer.ggml.pre"))
    rules = PRE_TOKENIZERS.get(SYNONYMS.get(pre, pre))
    return metadata.get("tokenizer.ggml.model") == "gpt2" and rules is not None and rules.nfc


class Composer:
    """Composes text for one vocabulary. Tokens that are cut out of the text before anything else stay as they are: what
    follows one must not melt into its last character."""

    def __init__(self, vocab: Any) -> None:
        self._vocab = vocab

    def __call__(self, text: str, parse_special: bool) -> str:
        if unicodedata.is_normalized("NFC", text):
            return text
        parts = self._cut[parse_special].split(text)
        parts[::2] = [unicodedata.normalize("NFC", part) for part in parts[::2]]
        return "".join(parts)

    @cached_property
    def _cut(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        """What is cut out where special tokens are plain text, and where they are not."""
        always, asked = libllama.LLAMA_TOKEN_ATTR_USER_DEFINED, libllama.LLAMA_TOKEN_ATTR_CONTROL
        return self._tokens(always), self._tokens(always | asked | libllama.LLAMA_TOKEN_ATTR_UNKNOWN)

    def _tokens(self, kinds: int) -> re.Pattern[str]:
        ids = range(libllama.llama_vocab_n_tokens(self._vocab))
        kept = [i for i in ids if libllama.llama_vocab_get_attr(self._vocab, i) & kinds]
        texts = {libllama.llama_vocab_get_text(self._vocab, i).decode("utf-8", "replace") for i in kept} - {""}
        return re.compile("(" + ("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)") + ")")
