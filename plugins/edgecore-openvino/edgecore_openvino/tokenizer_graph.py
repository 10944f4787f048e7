"""A neutral tokenizer as OpenVINO operations: each part of its tokenizer.json by the operation that does the same.

openvino_tokenizers' own converter needs transformers, joins rules that must run one after the other, and takes
strings for tokens that the `tokenizers` library never finds. Its operations can do it right, so they are put together
here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import openvino as ov
from openvino_tokenizers import _get_factory, _get_opset_factory
from openvino_tokenizers.tokenizer_pipeline import (
    AddToken,
    CombineSegmentsStep,
    FuseStep,
    NormalizeUnicode,
    PaddingStep,
    RegexDecodingStep,
    RegexNormalizationStep,
    RegexSplitStep,
    Sequence,
    TokenizerPipeline,
    TruncationStep,
    UTF8ValidateStep,
    VocabDecoderStep,
)
from openvino_tokenizers.utils import (
    change_inputs_type,
    change_outputs_type,
    create_string_constant_node,
)

from edgecore.checkpoint import Tokenizer, TokenType
from edgecore.checkpoint.pretokenizers import GPT2
from edgecore_openvino.tokenizer_merges import Nodes, NotExpressible, bpe

MARK = "▁"
"""SentencePiece's space."""
SPACE = r"\t-\r\x{85}\p{Z}"
"""White space as the `tokenizers` library counts it; PCRE2 counts U+180E too."""


@dataclass(frozen=True, slots=True)
class Added:
    """A token that is found before anything else looks at the text."""

    text: str
    id: int
    normalized: bool
    lstrip: bool
    rstrip: bool

    @property
    def pattern(self) -> str:
        """As it is found at a place; what it takes behind it is not part of it."""
        return r"\s*" * self.lstrip + f"({quoted(self.text)})"

    def rewritten(self, rewrites: Mapping[str, str]) -> Added:
        text = self.text
        for old, new in rewrites.items():
            text = text.replace(old, new)
        return replace(self, text=text)


@dataclass(frozen=True, slots=True)
class Rules:
    """What happens to a text between the search for added tokens and the merges."""

    normalizers: list[Any] = field(default_factory=list)
    rewrites: dict[str, str] = field(default_factory=dict)
    """What the normalizers put in the place of what."""
    splits: list[str] = field(default_factory=list)
    """Regular expressions, one after the other: each match is a piece of its own."""
    prefix: str = ""
    """When a space is put before a text: `always` is among the normalizers already, `first` is not."""


def tokenizer_model(tokenizer: Tokenizer, longest: int) -> ov.Model:
    """Text to ids. Raises `NotExpressible`. `longest`: tokens that remain where the caller asks for truncation."""
    spec = json.loads(tokenizer.to_json())
    added = [_added(entry) for entry in spec.get("added_tokens") or ()]
    text = ov.op.Parameter(ov.Type.string, ov.PartialShape(["?"]))
    strings = _get_opset_factory("opset15").create("StringTensorUnpack", text.outputs()).outputs()
    rules = _rules(spec)
    rewriting = [a.normalized and bool(rules.rewrites) for a in added]
    first = [a for a, late in zip(added, rewriting, strict=True) if not late]
    later = [a.rewritten(rules.rewrites) for a, late in zip(added, rewriting, strict=True) if late]
    if later and (rules.splits or any(a.lstrip or a.rstrip for a in later)):
        raise NotExpressible("tokens that are looked for in rewritten text, with rules around them")
    if rules.prefix == "first":
        strings = _begun(strings, [quoted(" "), MARK, *(a.pattern for a in first)])
    elif tokenizer.add_space_prefix and not rules.prefix:
        control = (TokenType.CONTROL, TokenType.UNKNOWN)
        pairs = zip(tokenizer.tokens, tokenizer.types, strict=True)
        strings = _begun(strings, [quoted(token) for token, kind in pairs if kind in control])
    nodes = _cut_tokens(TokenizerPipeline.add_ragged_dimension(strings), first)
    for step in rules.normalizers:
        nodes = nodes[:2] + step.get_ov_subgraph(nodes[2:])
    # A second SpecialTokensSplit would crash: it takes its flags for its pattern (2026.4).
    for rule in [_alternatives(later)] if later else rules.splits:
        nodes = RegexSplitStep(portable(rule), behaviour="isolate").get_ov_subgraph(nodes)
    ids = bpe(nodes[:5], tokenizer, spec["model"], {a.text.encode(): a.id for a in (*first, *later)})
    truncation = TruncationStep(max_length=longest)
    ids = truncation.get_ov_subgraph(ids)
    ids = CombineSegmentsStep(_around(tokenizer)).get_ov_subgraph(ids)
    padding = PaddingStep(_token_id=tokenizer.special.get("padding", 0), pad_right=False)
    model = ov.Model(padding.get_ov_subgraph(ids), [text], "tokenizer")
    model.add_sinks(truncation.get_stateful_sinks())
    return change_outputs_type(model, ov.Type.i64)


def detokenizer_model(tokenizer: Tokenizer) -> ov.Model:
    """Ids to text, as `Tokenizer.decode`; special tokens are left out unless the caller asks for them."""
    ids = ov.op.Parameter(ov.Type.i32, ov.PartialShape(["?", "?"]))
    hidden = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED)
    skipped = [i for i, kind in enumerate(tokenizer.types) if kind in hidden]
    spelled = [
        text.encode() if kind in hidden else tokenizer.token_bytes(i)
        for i, (text, kind) in enumerate(zip(tokenizer.tokens, tokenizer.types, strict=True))
    ]
    steps = [VocabDecoderStep(spelled, skipped), FuseStep()]
    if tokenizer.add_space_prefix:
        steps.append(RegexDecodingStep.strip_forward_space())
    steps.append(UTF8ValidateStep("replace"))
    nodes: Nodes = [ids.output(0)]
    for step in steps:
        nodes = step.get_ov_subgraph(nodes)
    model = ov.Model(_get_opset_factory("opset15").create("StringTensorPack", nodes).outputs(), [ids], "detokenizer")
    model.output().tensor.add_names({"string_output"})
    return change_inputs_type(model, ov.Type.i64)


def quoted(text: str) -> str:
    """Text as a regular expression for PCRE2, where a backslash before a letter means something."""
    return re.sub(r"([^\w\s]|\s)", lambda m: f"\\x{{{ord(m[1]):x}}}", text, flags=re.ASCII)


def portable(rule: str) -> str:
    """A splitting rule with its white space spelled out."""
    made, inside, at = "", False, 0
    while at < len(rule):
        pair = rule[at : at + 2]
        if pair == r"\s":
            made += SPACE if inside else f"[{SPACE}]"
        elif pair == r"\S" and not inside:
            made += f"[^{SPACE}]"
        elif pair[0] == "\\":
            made += pair
        else:
            inside = rule[at] == "[" or (inside and rule[at] != "]")
            made += rule[at]
            at -= 1
        at += 2
    return made


def _added(entry: Mapping[str, Any]) -> Added:
    if entry.get("single_word"):
        raise NotExpressible(f"token {entry['content']!r}, which is one only as a whole word")
    flags = (bool(entry.get(flag)) for flag in ("normalized", "lstrip", "rstrip"))
    return Added(entry["content"], entry["id"], *flags)


def _cut_tokens(nodes: Nodes, added: list[Added]) -> Nodes:
    inputs = [*nodes, *create_string_constant_node(portable(_alternatives(added)))]
    cut: Nodes = _get_factory().create("SpecialTokensSplit", inputs).outputs()
    return cut


def _alternatives(added: list[Added]) -> str:
    """The longest first, as the library does: they may begin alike. Each is the only group of its alternative."""
    patterns = [a.pattern + r"\s*" * a.rstrip for a in sorted(added, key=lambda a: -len(a.text))]
    return f"(?|{'|'.join(patterns)})" if patterns else "(?!)"


def _rules(spec: Mapping[str, Any]) -> Rules:
    rules = Rules()
    for part in _parts(spec.get("normalizer"), "normalizers"):
        match part:
            case {"type": "NFC"}:
                rules.normalizers.append(NormalizeUnicode("NFC"))
            case {"type": "Prepend", "prepend": "▁"}:
                rules = _with_prefix(rules, "always", r"\A(?!\z)")
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                _rewrite(rules, old, new)
            case _:
                raise NotExpressible(f"normalizer {part.get('type')}")
    for part in _parts(spec.get("pre_tokenizer"), "pretokenizers"):
        match part:
            case {"type": "ByteLevel"} if not part.get("add_prefix_space"):
                rules.splits.extend([GPT2] if part.get("use_regex", True) else [])
            case {"type": "Digits", "individual_digits": True}:
                rules.splits.append(r"\p{N}")
            case {"type": "Split", "pattern": {"Regex": str(rule)}, "behavior": "Isolated", "invert": False}:
                rules.splits.append(rule)
            case {"type": "Split", "pattern": {"String": " "}} if " " in rules.rewrites:
                pass  # Gemma's: behind its normalizer there is no space any more.
            case {"type": "Metaspace", "replacement": "▁", "split": False}:
                _rewrite(rules, " ", MARK)
                rules = _with_prefix(rules, part.get("prepend_scheme", "always"), rf"\A(?!{MARK}|\z)")
            case _:
                raise NotExpressible(f"pre-tokenizer {part.get('type')}")
    return rules


def _rewrite(rules: Rules, old: str, new: str) -> None:
    rules.normalizers.append(RegexNormalizationStep(quoted(old), new))
    rules.rewrites[old] = new


def _with_prefix(rules: Rules, scheme: str, where: str) -> Rules:
    if scheme == "always":
        rules.normalizers.append(RegexNormalizationStep(where, MARK, global_replace=False))
    return rules if scheme == "never" else replace(rules, prefix=scheme)


def _parts(part: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    if part is None:
        return []
    return [p for each in part[inner] for p in _parts(each, inner)] if part["type"] == "Sequence" else [part]


def _begun(strings: Nodes, unless: list[str]) -> Nodes:
    """A mark before each text, unless it is empty or begins with one of those (at least one)."""
    pattern = portable(r"\A(?!\z|" + "|".join(unless) + ")")
    made: Nodes = RegexNormalizationStep(pattern, MARK, global_replace=False).get_ov_subgraph(strings)
    return made


def _around(tokenizer: Tokenizer) -> list[Any]:
    """BOS and EOS around the text, where the model wants them."""
    ids = tokenizer.special
    before = [AddToken(_token_id=ids["bos"])] if tokenizer.add_bos and "bos" in ids else []
    after = [AddToken(_token_id=ids["eos"])] if tokenizer.add_eos and "eos" in ids else []
    return [*before, Sequence(), *after]
