"""Text to token ids and back, the same ids whether the model came as tokenizer.json or inside a GGUF file.

The work is done by the `tokenizers` library; here is what it lacks: bytes of a single token (streams need them),
special tokens that are plain text unless asked for, and the tables that a GGUF writer needs.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import tokenizers

from edgecore.contract.errors import BadRequest, CannotDo, CorruptModel, EdgecoreError

Made = TypeVar("Made")


class TokenType(IntEnum):
    """What a token is, with llama.cpp's numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    """Adds no text and is not found in text unless asked."""
    USER_DEFINED = 4
    """Found in text before anything else, always."""
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer's tables: all that a GGUF writer needs."""

    model: str
    """llama.cpp's word: `gpt2` is byte-level BPE, `llama` is SentencePiece-style BPE with byte fallback by scores,
    `gemma4` the same by merges."""
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    pre: str = ""
    """llama.cpp's name of the pre-tokenizer; empty where it has none (and a GGUF file cannot be written)."""
    merges: tuple[str, ...] = ()
    """`left right`, the first merged first."""
    scores: tuple[float, ...] = ()
    """Of each token, for model `llama`: the pair with the highest is merged first."""
    special: Mapping[str, int] = field(default_factory=dict)
    """Ids by role: `bos`, `eos`, `unknown`, `separator`, `padding`, `mask`, where the model has them."""
    eos_ids: frozenset[int] = frozenset()
    """Every token that ends a generation, end of turn included."""
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    """Text is encoded as if a space stood before it."""
    chat_template: str | None = None


ROLES = {
    "bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "separator": "sep_token", "padding": "pad_token",
    "mask": "mask_token",
}  # fmt: skip
"""Our word for a special token and transformers'."""


class Tokenizer:
    """See the module. Thread-safe."""

    def __init__(self, vocabulary: Vocabulary, engine: tokenizers.Tokenizer, opening: str = "") -> None:
        """`opening` is what the engine needs before a text and does not put there itself."""
        self.vocabulary = vocabulary
        self._engine = engine
        self._opening = opening
        self._lock = threading.Lock()

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids. `add_special` adds BOS and EOS where the model wants them; special tokens that stand in `text` are
        plain text unless `parse_special`. Raises `BadRequest` for text that is not Unicode (lone surrogates), and for
        bytes; `CorruptModel` when the tokenizer fails on a text that it must take."""
        if not isinstance(text, str):
            raise BadRequest(f"{type(text).__name__} is not text", supported="str; decode bytes as UTF-8 first")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRequest(f"the text is not valid Unicode: {error}", supported="text that UTF-8 can hold") from None
        if self._opening and text and not (parse_special and text.startswith(self._control)):
            text = self._opening + text

        def ids_of() -> list[int]:
            self._engine.encode_special_tokens = not parse_special
            found: list[int] = self._engine.encode(text, add_special_tokens=False).ids
            return found

        with self._lock:
            ids = guarded(ids_of, lambda why: CorruptModel(f"the tokenizer fails on this text: {why}"))
        if not add_special:
            return list(ids)
        v = self.vocabulary
        before = [v.special["bos"]] if v.add_bos and "bos" in v.special else []
        after = [v.special["eos"]] if v.add_eos and "eos" in v.special else []
        return [*before, *ids, *after]

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to the text, perhaps half a character; nothing for control tokens. Raises `BadRequest`."""
        if not 0 <= token < self.vocab_size:
            raise BadRequest(f"token id {token}", supported=f"ids from 0 to {self.vocab_size - 1}")
        return self._bytes[token]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of the tokens; bytes that are not UTF-8 become U+FFFD. A space that `encode` put first is taken off."""
        data = b"".join(map(self.token_bytes, tokens))
        if self.vocabulary.add_space_prefix and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", "replace")

    def apply_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The prompt that the chat template makes, for `encode(..., add_special=False, parse_special=True)`.

        `tools` are JSON schemas, as transformers takes them.

        Raises `CannotDo` without a template; `BadRequest` with the template's own words when it refuses the messages;
        `CorruptModel` when it is broken, reaches for Python, or was stopped for time or memory.
        """
        from edgecore.checkpoint.chat import render_guarded

        template = self.vocabulary.chat_template
        if template is None:
            raise CannotDo("the model has no chat template", hint="edgecore run, which takes a plain prompt")
        given: dict[str, Any] = {ROLES[role]: self.tokens[i] for role, i in self.special.items() if role in ROLES}
        given |= {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        return render_guarded(template, given if tools is None else {**given, "tools": list(tools)})

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Ids of the prompt that `apply_chat` makes, in which only the template's own special tokens are special: those
        that stand in a message are text. Raises as `apply_chat` and `encode`."""
        from edgecore.contract.chat_marks import marked, pieces

        text = self.apply_chat(marked(list(messages), self._control_pattern), add_generation_prompt, tools)
        found: list[int] = []
        for piece, plain in pieces(text):
            ids = self.encode(piece, add_special=False, parse_special=not plain)
            if found and self.add_space_prefix:
                # Behind a newline no space is put before the piece.
                line = self.encode("\n", add_special=False)
                whole = self.encode("\n" + piece, add_special=False, parse_special=not plain)
                ids = whole[len(line) :] if whole[: len(line)] == line else ids
            found += ids
        return found

    def to_json(self) -> str:
        """The engine as the text of a tokenizer.json: what encodes. How ids become text again is `token_bytes` here."""
        return str(self._engine.to_str())

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary.tokens)

    @property
    def bos_id(self) -> int | None:
        return self.vocabulary.special.get("bos")

    @property
    def eos_ids(self) -> frozenset[int]:
        return self.vocabulary.eos_ids

    @property
    def model(self) -> str:
        return self.vocabulary.model

    @property
    def pre(self) -> str:
        return self.vocabulary.pre

    @property
    def tokens(self) -> tuple[str, ...]:
        return self.vocabulary.tokens

    @property
    def types(self) -> tuple[TokenType, ...]:
        return self.vocabulary.types

    @property
    def merges(self) -> tuple[str, ...]:
        return self.vocabulary.merges

    @property
    def scores(self) -> tuple[float, ...]:
        return self.vocabulary.scores

    @property
    def special(self) -> Mapping[str, int]:
        return self.vocabulary.special

    @property
    def add_bos(self) -> bool:
        return self.vocabulary.add_bos

    @property
    def add_eos(self) -> bool:
        return self.vocabulary.add_eos

    @property
    def add_space_prefix(self) -> bool:
        return self.vocabulary.add_space_prefix

    @property
    def chat_template(self) -> str | None:
        return self.vocabulary.chat_template

    @cached_property
    def _control(self) -> tuple[str, ...]:
        pairs = zip(self.tokens, self.types, strict=True)
        return tuple(token for token, kind in pairs if kind in (TokenType.CONTROL, TokenType.UNKNOWN))

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        from edgecore.contract.chat_marks import pattern

        return pattern(self._control)

    @cached_property
    def _bytes(self) -> list[bytes]:
        to_bytes = _byte_level_bytes if self.model == "gpt2" else _sentencepiece_bytes
        return [_token_bytes(to_bytes, *pair) for pair in zip(self.tokens, self.types, strict=True)]


def guarded(make: Callable[[], Made], wrong: Callable[[str], EdgecoreError]) -> Made:
    """What `make` makes of a stranger's tables. The library raises nothing narrower than Exception, and where it panics
    something that is not even one; both become the error that `wrong` makes."""
    try:
        return make()
    except EdgecoreError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise wrong(str(error)[:300]) from None


def load_tokenizer(path: Path, source_format: str, metadata: Mapping[str, Any], vocab_size: int) -> Tokenizer:
    """The tokenizer of a checkpoint. Raises `UnsupportedModel`, `CorruptModel`, `ModelNotFound`."""
    if source_format == "gguf":
        from edgecore.checkpoint.tokenizer_gguf import tokenizer_from_gguf

        return tokenizer_from_gguf(path, metadata, vocab_size)
    from edgecore.checkpoint.tokenizer_hf import tokenizer_from_folder

    return tokenizer_from_folder(path, metadata, vocab_size)


END_TEXTS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>",
    "<|end_of_text|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "</s>", "<eos>", "<end_of_utterance>",
    "<｜end▁of▁sentence｜>", "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>",
    "<REPO>", "<reponame>", "<|file_sep|>", "<|calls|>", "<|flush|>", "<turn|>", "<|tool_response>", "[e~[",
})  # fmt: skip
"""Tokens that end a generation by their text alone, as llama.cpp has it: models often declare only one of theirs."""


def end_ids(tokens: Sequence[str], types: Sequence[TokenType], declared: set[int]) -> frozenset[int]:
    """`declared`, and the special tokens whose text says so. (llama.cpp believes the text of normal tokens too.)"""
    special = (TokenType.CONTROL, TokenType.USER_DEFINED)
    return frozenset(declared) | {i for i, t in enumerate(tokens) if t in END_TEXTS and types[i] in special}


def _token_bytes(to_bytes: Any, text: str, kind: TokenType) -> bytes:
    if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED):
        return b""
    if kind is TokenType.USER_DEFINED:
        plain = text if to_bytes is _byte_level_bytes else text.replace("▁", " ")
        return plain.encode("utf-8", "replace")
    made: bytes = to_bytes(text)
    return made


def _alphabet() -> dict[str, int]:
    """GPT-2's 256 printable characters, one a byte (`bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {**{chr(b): b for b in printable}, **{chr(256 + n): b for n, b in enumerate(others)}}


_BYTE_OF = _alphabet()


def _byte_level_bytes(text: str) -> bytes:
    try:
        return bytes([_BYTE_OF[c] for c in text])
    except KeyError:
        return text.encode("utf-8", "replace")


def _sentencepiece_bytes(text: str) -> bytes:
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        try:
            return bytes([int(text[3:5], 16)])
        except ValueError:
            pass
    return text.replace("▁", " ").encode("utf-8", "replace")
