"""Small tokenizers of every supported kind, trained here by the libraries that the real ones were trained with.

from support.originals import sentencepiece_model, tokenizer_json
(folder / "tokenizer.model").write_bytes(sentencepiece_model("llama2"))
(folder / "tokenizer.json").write_text(tokenizer_json("qwen2"))
"""

from __future__ import annotations

import io
import json
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from edgecore.checkpoint.pretokenizers import PRE_TOKENIZERS

from support.lines import lines

SENTENCEPIECE: dict[str, dict[str, Any]] = {
    "llama2": {},
    "gemma": {
        "add_dummy_prefix": False,
        "vocab_size": 2400,
        "user_defined_symbols": [
            *("▁" * n for n in range(2, 32)),
            *("\n" * n for n in range(1, 32)),
            *("<mask>", "<2mass>", "[@BOS@]", "<unused0>", "<table>", "</table>", "<h1>", "<start_of_turn>"),
        ],
        "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3,
        "bos_piece": "<bos>", "eos_piece": "<eos>",
    },
    "mistral-v3": {"user_defined_symbols": ["[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "▁▁▁"], "control_symbols": ["[INST]"]},
    "without-bytes": {"byte_fallback": False},
}  # fmt: skip
"""Settings that differ from Llama 2's, by whose tokenizer has them."""
BYTE_LEVEL = {
    "gpt-2": ("<|endoftext|>",),
    "llama-bpe": ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "qwen2": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "smollm": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "tekken": ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
    "gpt-4o": ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"),
}
"""Special tokens by pre-tokenizer."""
PHI3 = ("<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|system|>", "<|end|>", "<|user|>")


@cache
def sentencepiece_model(kind: str, **settings: Any) -> bytes:
    """The bytes of a tokenizer.model."""
    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in lines() if "\0" not in line]),
        model_writer=made,
        **{
            "vocab_size": 2000, "model_type": "bpe", "byte_fallback": True, "num_threads": 1, "minloglevel": 2,
            "remove_extra_whitespaces": False, "normalization_rule_name": "identity", "character_coverage": 0.98,
            "split_digits": True, "allow_whitespace_only_pieces": True, "max_sentence_length": 100_000,
            **SENTENCEPIECE[kind], **settings,
        },
    )  # fmt: skip
    return made.getvalue()


@cache
def tokenizer_json(kind: str) -> str:
    """The text of a tokenizer.json: a kind of `BYTE_LEVEL`, or `llama2`, `gemma` or `phi-3`."""
    return _byte_level(kind) if kind in BYTE_LEVEL else _with_bytes(kind)


def _byte_level(kind: str) -> str:
    rules = PRE_TOKENIZERS[kind]
    tokenizer = Tokenizer(models.BPE(ignore_merges=rules.ignore_merges))
    if rules.nfc:
        tokenizer.normalizer = normalizers.NFC()
    parts = {
        "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)],
        "smollm": [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)],
    }.get(kind) or [
        *(pre_tokenizers.Split(Regex(rule), "isolated", False) for rule in rules.rules),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer.pre_tokenizer = parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(BYTE_LEVEL[kind])
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(lines(), trainer)
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    if kind in ("llama-bpe", "tekken"):
        first = special[0] if kind == "llama-bpe" else "<s>"
        tokenizer.post_processor = processors.TemplateProcessing(
            f"{first} $A", f"{first} $A $B", [(first, tokenizer.token_to_id(first))]
        )
    return str(tokenizer.to_str())


def _with_bytes(kind: str) -> str:
    """As transformers turns a tokenizer.model into a tokenizer.json."""
    import sentencepiece

    source = "gemma" if kind == "gemma" else "llama2"
    model = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(source))
    ids = {model.id_to_piece(i): i for i in range(model.vocab_size())}
    merges = []
    for token, i in ids.items():
        found = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        found = [(a, b) for a, b in found if a in ids and b in ids]
        merges += sorted((-model.get_score(i), ids[a], ids[b], a, b) for a, b in found)
    pairs = [(a, b) for *_, a, b in sorted(merges, key=lambda merge: merge[0])]
    tokenizer = Tokenizer(models.BPE(ids, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    escape = normalizers.Replace(" ", "▁")
    if kind == "gemma":
        tokenizer.normalizer = escape
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), escape])
    strip = [] if kind == "gemma" else [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    bos, eos = ("<bos>", "<eos>") if kind == "gemma" else ("<s>", "</s>")
    control = {"gemma": ["<pad>", eos, bos, "<unk>"], "phi-3": ["<unk>", bos]}.get(kind, ["<unk>", bos, eos])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    if kind == "gemma":
        own = SENTENCEPIECE["gemma"]["user_defined_symbols"]
        tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in own])
    if kind == "phi-3":
        tokenizer.add_tokens([AddedToken(eos, normalized=False, special=False, rstrip=True)])
        tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True, rstrip=t != PHI3[0]) for t in PHI3])
    tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A $B", [(bos, ids[bos])])
    return str(tokenizer.to_str())


def settings_of(kind: str) -> str:
    """The tokenizer_config.json beside it."""
    if kind in BYTE_LEVEL:
        special = BYTE_LEVEL[kind]
        first = {"tekken": "<s>", "llama-bpe": special[0]}.get(kind)
        return json.dumps({"bos_token": first, "eos_token": special[2 if kind == "tekken" else 0]})
    gemma = kind == "gemma"
    return json.dumps({"bos_token": "<bos>" if gemma else "<s>", "eos_token": "<eos>" if gemma else "</s>",
                       "unk_token": "<unk>"})  # fmt: skip
