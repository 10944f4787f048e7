"""`tokenizer.ggml.*` as `convert_hf_to_gguf.py` writes it: tables of tokens, their types and scores, special ids, chat
template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecore.checkpoint import Checkpoint
from edgecore.checkpoint.chat_source import optional_json
from edgecore.checkpoint.mapping import read_text
from edgecore.checkpoint.safetensors_file import parse_json
from edgecore.checkpoint.sentencepiece_file import read_sentencepiece
from edgecore.checkpoint.tokenizer import TokenType
from edgecore.contract import CorruptModel, UnsupportedModel
from edgecore_llamacpp.header import Kind, Metadata
from edgecore_llamacpp.special_tokens import special_tokens

CODE_LLAMA_EOT = 32010
"""The converter knows Code Llama by the size of its vocabulary. Its `gguf` package has no way left to write the tokens
for filling in, which the converter also names."""
ADDED_SCORE, UNUSED_SCORE = -1000.0, -10000.0
_LARGEST = 200_000_000


def describe_tokenizer(metadata: Metadata, model: Checkpoint) -> None:
    """Raises `UnsupportedModel` for a tokenizer that llama.cpp has no name for, `CorruptModel`."""
    try:
        _describe(metadata, model)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # files of JSON may hold anything anywhere
        raise CorruptModel(f"{model.path}: the tokenizer's files are not as they should be ({error!r})") from None


def differences(model: Checkpoint) -> tuple[str, ...]:
    """What a GGUF file cannot say of the tokenizer, and llama.cpp therefore does otherwise."""
    if model.source_format == "gguf" or not model.tokenizer.add_space_prefix:
        return ()
    part = _tokenizer_json(model.path).get("pre_tokenizer")
    parts = [part, *(part.get("pretokenizers") or ())] if isinstance(part, Mapping) else []
    if not any(p.get("type") == "Metaspace" and p.get("prepend_scheme") == "first" for p in parts):
        return ()
    return (
        "llama.cpp puts a space before text that follows a special token, where this model's tokenizer puts none: ids "
        "of prompts with special tokens inside, as chat templates make them, differ there",
    )


def _describe(metadata: Metadata, model: Checkpoint) -> None:
    folder, family = model.path, model.decoder.family
    settings = optional_json(folder / "tokenizer_config.json").values
    byte_level = family == "phi3" and settings.get("tokenizer_class") == "GPT2Tokenizer"
    prefix = settings.get("add_prefix_space")
    if family in ("llama", "mistral") and isinstance(prefix, bool):
        metadata.put("tokenizer.ggml.add_space_prefix", prefix)
    # Llama 3's tokenizer.model is another thing of that name; its tokenizer.json says that it is byte-level.
    byte_level |= (folder / "tokenizer.json").is_file() and model.tokenizer.model == "gpt2"
    if (folder / "tokenizer.model").is_file() and not byte_level:
        count: int | None = _describe_pieces(metadata, model, settings)
    else:
        count = _describe_tables(metadata, model)
    special_tokens(folder, model.metadata, count).describe(metadata)
    _describe_chat(metadata, model, settings)
    if family == "gemma3" and count is not None:
        metadata.put("tokenizer.ggml.add_space_prefix", False)
    if family in ("llama", "mistral") and model.decoder.vocab_size == 32016:
        metadata.put("tokenizer.ggml.eot_token_id", CODE_LLAMA_EOT)
    if family in ("llama", "mistral") and model.decoder.vocab_size == 49152:
        metadata.put("tokenizer.ggml.add_bos_token", False)  # Granite's and SmolLM's, by the converter's rule


def _describe_pieces(metadata: Metadata, model: Checkpoint, settings: Mapping[str, Any]) -> int:
    """tokenizer.model, and what the files beside it add or rename."""
    folder, size = model.path, model.decoder.vocab_size
    pieces, _ = read_sentencepiece(folder / "tokenizer.model")
    tokens = [f"[PAD{i}]" for i in range(size)]
    scores = [UNUSED_SCORE] * size
    types = [int(TokenType.UNUSED)] * size
    for i, piece in enumerate(pieces[:size]):
        tokens[i], scores[i], types[i] = piece.text, piece.score, piece.kind
    phi = model.decoder.family == "phi3"
    for token, text, special in _added(folder, settings, phi):
        if not 0 <= token < size:
            continue
        control = special is not None and (special or (not phi and _looks_special(text)))
        types[token] = int(TokenType.CONTROL if control else TokenType.USER_DEFINED)
        tokens[token] = text if control or phi or special is None else text.replace("▁", " ")
        scores[token] = ADDED_SCORE
    _put(metadata, "llama", "default", tokens, types, scores)
    return size


def _added(folder: Path, settings: Mapping[str, Any], phi: bool) -> list[tuple[int, str, bool | None]]:
    """Id, text and whether it is special (None: the file does not say), in the converter's order."""
    found: list[tuple[int, str, bool | None]] = []
    for text, token in optional_json(folder / "added_tokens.json").values.items():
        found.append((int(token), str(text), None))
    for key, value in (settings.get("added_tokens_decoder") or {}).items():
        found.append((int(key), str(value["content"]), bool(value.get("special"))))
    if phi:
        for value in _tokenizer_json(folder).get("added_tokens") or ():
            found.append((int(value["id"]), str(value["content"]), bool(value.get("special"))))
    return found


def _describe_tables(metadata: Metadata, model: Checkpoint) -> int | None:
    """tokenizer.json. Answers the number of tokens for the SentencePiece kind, whose special ids must lie below it."""
    tokenizer, size = model.tokenizer, model.decoder.vocab_size
    missing = size - tokenizer.vocab_size
    if missing < 0:
        raise UnsupportedModel(f"the tokenizer has {tokenizer.vocab_size} tokens, the embedding table {size}")
    if not tokenizer.pre and tokenizer.model == "gpt2":
        raise UnsupportedModel(
            "llama.cpp has no name for this model's pre-tokenizer",
            supported="pre-tokenizers of models that llama.cpp knows",
            hint="edgecore plugin install llamacpp --export",
        )
    tokens = [*tokenizer.tokens, *(f"[PAD{i}]" for i in range(size - missing, size))]
    types = [*map(int, tokenizer.types), *([int(TokenType.UNUSED)] * missing)]
    scores = [*tokenizer.scores, *([UNUSED_SCORE] * missing)] if tokenizer.scores else []
    if tokenizer.model == "gpt2":
        for i, kind in enumerate(types):
            if kind == TokenType.USER_DEFINED:
                if _looks_special(tokens[i]):
                    types[i] = int(TokenType.CONTROL)
                else:
                    tokens[i] = tokens[i].replace("▁", " ")
    _put(metadata, tokenizer.model, tokenizer.pre or "default", tokens, types, scores)
    metadata.put_array("tokenizer.ggml.merges", _merges(tokenizer.merges), Kind.STRING)
    return None if tokenizer.model == "gpt2" else size


def _put(
    metadata: Metadata, model: str, pre: str, tokens: list[str], types: list[int], scores: list[float]
) -> None:  # fmt: skip
    if len(set(tokens)) != len(tokens):
        twice = next(token for token, count in Counter(tokens).items() if count > 1)
        raise UnsupportedModel(
            f"token {twice!r} stands twice, at which libllama ends the process", supported="one each"
        )
    metadata.put("tokenizer.ggml.model", model)
    metadata.put("tokenizer.ggml.pre", pre)
    metadata.put_array("tokenizer.ggml.tokens", tokens, Kind.STRING)
    metadata.put_array("tokenizer.ggml.scores", scores, Kind.FLOAT32)
    metadata.put_array("tokenizer.ggml.token_type", types, Kind.INT32)


def _merges(merges: tuple[str, ...]) -> tuple[str, ...]:
    """`left right`. A space inside a part, which few vocabularies have, is written as the alphabet's letter for it."""
    if all(merge.count(" ") == 1 for merge in merges):
        return merges
    parts = [(merge[: (at := merge.find(" ", 1))], merge[at + 1 :]) for merge in merges]
    return tuple(" ".join(part.replace(" ", "Ġ") for part in pair) for pair in parts)


def _looks_special(text: str) -> bool:
    """Tokens that models forget to declare special (`does_token_look_special`)."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def _describe_chat(metadata: Metadata, model: Checkpoint, settings: Mapping[str, Any]) -> None:
    """The template, and further named ones."""
    default, named = model.chat_template, settings.get("chat_template")
    folder = model.path / "additional_chat_templates"
    others: dict[str, Any] = {file.stem: read_text(file, 1 << 24) for file in sorted(folder.glob("*.jinja"))}
    if isinstance(named, list) and not (model.path / "chat_template.jinja").is_file():
        others |= {str(t.get("name")): t.get("template") for t in named if isinstance(t, Mapping)}
    others = {"".join(c if c.isascii() and c.isalnum() else "_" for c in n): t for n, t in others.items()}
    written = {n: t for n, t in others.items() if n and n != "default" and isinstance(t, str)}
    for name, template in written.items():
        metadata.put(f"tokenizer.chat_template.{name}", template)
    metadata.put_array("tokenizer.chat_templates", sorted(written), Kind.STRING)
    if default:
        metadata.put("tokenizer.chat_template", default)


def _tokenizer_json(folder: Path) -> Mapping[str, Any]:
    file = folder / "tokenizer.json"
    return parse_json(file, read_text(file, _LARGEST)) if file.is_file() else {}
