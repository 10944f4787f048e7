"""openvino_tokenizer.xml and openvino_detokenizer.xml, which openvino_genai reads: written where they answer as the
neutral tokenizer does, and only there.

Whoever runs the folder with GenAI shall get the ids that this model was trained with and that its quality was measured
with. So the models are run here over texts that break splitting rules before they are saved; one that answers other ids
is left out, and the folder's notes say why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_tokenizers

from edgecore.checkpoint import Tokenizer, TokenType
from edgecore_openvino.runtime import core
from edgecore_openvino.tokenizer_graph import detokenizer_model, tokenizer_model
from edgecore_openvino.tokenizer_merges import NotExpressible

__all__ = ["NotExpressible", "compare", "write"]

LINES = (
    "", "a", " a", "  a  ", "\n", "\n\n\t a\r\n", " " * 33, "=" * 70, "x" * 200, "▁a ▁▁b", "e\u0301 ạ Å",
    "It's 5 o'clock; we'LL say \"I'VE\" DON'T.", "naïve façade Übung €3,50", "1234567 3.14 0x1F ١٢٣ ½ ②",
    "Привет, мир! Ёжик №5", "你好，世界。こんにちは 안녕하세요", "हिन्दी ไทย தமிழ் עברית العربية", "🙂👩‍👩‍👧‍👦🏳️‍🌈 ☃",
    "def f(x):\n    return x ** 2  # ok\n\n", "https://example.org/a?b=c&d=%20", "<0x41> [PAD1] <s> </s> <unk>",
    "a\u00a0b\u2003c\u3000d\u180ee\u200bf\u2028g", "\x01\x1b\x7f\ufeff\ufffd",
)  # fmt: skip
"""Each breaks a rule that some tokenizer has."""
MOST_TOKENS = 64
"""Special tokens that are tried among other text; Gemma has 6,000."""
PARTS = ("a {} b", "{}", "{0}\n{0} c", "d{}e")
NORMALIZES = (
    "openvino_genai composes characters (NFC) without putting several marks on one letter into Unicode's order: text "
    "that has them in another order gets other ids there than here"
)


def write(tokenizer: Tokenizer, out: Path, stems: tuple[str, str], longest: int) -> list[str]:
    """Writes both models and answers what a person should know. Raises `NotExpressible`, and then nothing is written.

    stems:   names of tokenizer and detokenizer, each an .xml and a .bin.
    longest: tokens that remain where a caller of GenAI asks for truncation.
    """
    models = tokenizer_model(tokenizer, longest), detokenizer_model(tokenizer)
    compare(tokenizer, *models)
    for model, stem in zip(models, stems, strict=True):
        for key, value in rt_info(tokenizer).items():
            model.set_rt_info(value, key)
        number(model)
        ov.save_model(model, out / f"{stem}.xml", compress_to_fp16=False)
    return [NORMALIZES] if '"NFC"' in tokenizer.to_json() else []


def number(model: ov.Model) -> None:
    """Names operators by their place in the model: OpenVINO counts all that the process ever made, and writes that."""
    for place, operator in enumerate(model.get_ordered_ops()):
        name = f"{operator.get_type_name()}_{place}"
        for output in operator.outputs():
            if names := output.get_names():
                output.set_names({name if other == operator.get_friendly_name() else other for other in names})
        operator.set_friendly_name(name)


def compare(tokenizer: Tokenizer, encoder: ov.Model, decoder: ov.Model) -> None:
    """Raises `NotExpressible` with the first text that gets other ids, or the first ids that become another text."""
    encode, decode = Encoder(encoder), Decoder(decoder)
    for text in texts(tokenizer):
        ids = tokenizer.encode(text, parse_special=True)
        if (found := encode(text)) != ids:
            raise NotExpressible(f"{text[:60]!r} becomes {found[:12]}, not {ids[:12]}")
        if ids and (back := decode(ids)) != tokenizer.decode(ids):
            raise NotExpressible(f"{ids[:12]} become {back[:60]!r}, not {tokenizer.decode(ids)[:60]!r}")


def texts(tokenizer: Tokenizer) -> Iterator[str]:
    """The hard lines, and the tokenizer's own special tokens among text."""
    yield from LINES
    own = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    tokens = [t for t, kind in zip(tokenizer.tokens, tokenizer.types, strict=True) if kind in own]
    few = tokens[: MOST_TOKENS // 2] + tokens[max(MOST_TOKENS // 2, len(tokens) - MOST_TOKENS // 2) :]
    for token in few:
        yield from (part.format(token) for part in PARTS)
    yield "".join(few)


class Encoder:
    """A tokenizer model, run."""

    def __init__(self, model: ov.Model) -> None:
        self._request = _compiled(model).create_infer_request()

    def __call__(self, text: str) -> list[int]:
        ids = self._request.infer([np.array([text])])["input_ids"]
        return [int(i) for i in ids[0]]


class Decoder:
    """A detokenizer model, run."""

    def __init__(self, model: ov.Model) -> None:
        self._request = _compiled(model).create_infer_request()

    def __call__(self, ids: list[int]) -> str:
        return str(self._request.infer([np.array([ids], np.int64)])["string_output"][0])


def rt_info(tokenizer: Tokenizer) -> Mapping[str, str | int]:
    """What GenAI reads of the tokenizer beside its operations."""
    special = tokenizer.special
    found = {
        "bos_token_id": special.get("bos"),
        "eos_token_id": special.get("eos"),
        "pad_token_id": special.get("padding", special.get("eos")),
        "chat_template": tokenizer.chat_template,
        "add_special_tokens": "True",
        "skip_special_tokens": "True",
        "openvino_version": ov.get_version(),
        "openvino_tokenizers_version": openvino_tokenizers.__version__,
    }
    return {key: value for key, value in found.items() if value is not None}


def _compiled(model: ov.Model) -> ov.CompiledModel:
    # Importing openvino_tokenizers taught it to cores that are made later; ours may be older.
    core().add_extension(str(openvino_tokenizers._ext_path))
    return core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1})
