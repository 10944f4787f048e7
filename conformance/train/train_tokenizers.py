"""Makes the small tokenizers that the random checkpoints of each family carry: the kinds that the families come with,
trained on edgecore's own evaluation texts, which vary (prose, dialogue, code, a table, other scripts).

    python conformance/train/train_tokenizers.py [OUT]

What it makes is committed, because another version of the `tokenizers` package may choose other merges.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from edgecore.checkpoint.pretokenizers import PRE_TOKENIZERS

HERE = Path(__file__).parent
DATA = HERE.parent / "edgecore_conformance/fixtures/data/tokenizers"
VOCAB = 512
TEXTS = HERE.parents[1] / "edgecore/quality/texts"
OTHER = (
    "Words: naïve, façade, Übung, señor, Привет, 你好, 🙂.\ndef mean(values):\n    return sum(values) / len(values)\n"
)
BYTE_LEVEL: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    # pre-tokenizer, special tokens (begin, end, ...), settings
    "llama3": (
        "llama-bpe",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": 0, "eos_token": 2},
    ),
    "qwen2": (
        "qwen2",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": 2, "unk_token": None, "pad_token": 0,
         "add_bos_token": False, "add_prefix_space": False},
    ),
    "phi4": (
        "gpt-4o",
        ("<|endoftext|>", "<|end|>", "<|user|>"),
        {"tokenizer_class": "GPT2Tokenizer", "bos_token": 0, "eos_token": 1, "unk_token": 0, "pad_token": 0,
         "add_bos_token": False, "add_eos_token": False},
    ),
}  # fmt: skip
PIECES = ("<unk>", "<s>", "</s>")


def main(out: Path) -> None:
    text = "".join((TEXTS / name).read_text(encoding="utf-8") for name in ("short.txt", "more.txt")) + OTHER
    lines = text.splitlines(keepends=True)
    for name, (rule, special, settings) in BYTE_LEVEL.items():
        write(out / name, byte_level(lines, rule, special), settings, special)
    for name, prefix in (
        ("sentencepiece-prefix", "every"),
        ("sentencepiece-first", "first"),
        ("sentencepiece", "never"),
    ):
        kind = "GemmaTokenizer" if prefix == "never" else "LlamaTokenizer"
        settings = {
            "tokenizer_class": kind, "bos_token": 1, "eos_token": 2, "unk_token": 0, "add_bos_token": True,
            "add_eos_token": False,
        }  # fmt: skip
        write(out / name, pieces(lines, prefix), settings, PIECES)


def byte_level(lines: list[str], rule: str, special: tuple[str, ...]) -> Tokenizer:
    known = PRE_TOKENIZERS[rule]
    tokenizer = Tokenizer(models.BPE(ignore_merges=known.ignore_merges))
    tokenizer.pre_tokenizer = known.build()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=list(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(lines, trainer)
    if known.nfc:
        tokenizer.normalizer = normalizers.NFC()
    if known.add_bos:
        begins_with(tokenizer, special[0], 0)
    return tokenizer


def pieces(lines: list[str], prefix: str) -> Tokenizer:
    """SentencePiece's kind: spaces are letters, what no piece spells is spelt in bytes. The library trains no such
    vocabulary, so the 256 bytes are put between what it trained.

    prefix: where a space is put that the text has not: before `every` part of it, so behind special tokens too (as
    Llama 2 and Mistral 7B v0.1 were published, by a normalizer), before the `first` alone (Mistral v0.3), or `never`.
    """
    scheme: Any = "never" if prefix == "never" else "first"
    trained = Tokenizer(models.BPE(unk_token=PIECES[0]))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 256, special_tokens=list(PIECES), limit_alphabet=90, show_progress=False
    )
    trained.train_from_iterator(lines, trainer)
    model = json.loads(trained.to_str())["model"]
    learnt = sorted((t for t in model["vocab"] if t not in PIECES), key=model["vocab"].__getitem__)
    merged = {"".join(merge) for merge in model["merges"]}
    # As SentencePiece orders them: bytes, what was merged, single letters.
    order = [*PIECES, *(f"<0x{byte:02X}>" for byte in range(256)), *(t for t in learnt if t in merged)]
    order += [t for t in learnt if t not in merged]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(order)}, merges=[tuple(m) for m in model["merges"]],
            unk_token=PIECES[0], fuse_unk=True, byte_fallback=True,
        )
    )  # fmt: skip
    tokenizer.add_special_tokens(list(PIECES))
    if prefix == "every":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps if prefix == "never" else [*steps, decoders.Strip(" ", 1, 0)])
    begins_with(tokenizer, PIECES[1], 1)
    return tokenizer


def begins_with(tokenizer: Tokenizer, token: str, i: int) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, i)]
    )


def write(folder: Path, tokenizer: Tokenizer, settings: dict[str, Any], special: tuple[str, ...]) -> None:
    assert tokenizer.get_vocab_size() == VOCAB
    folder.mkdir(parents=True, exist_ok=True)
    named = {k: special[v] if k.endswith("_token") and type(v) is int else v for k, v in settings.items()}
    begin, end = named["bos_token"] or special[1], named["eos_token"]
    template = (
        "{% for message in messages %}{{ '"
        + begin
        + "' + message['role'] + ': ' + message['content'] + '"
        + end
        + "' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '" + begin + "assistant: ' }}{% endif %}"
    )
    text = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, indent=1)
    (folder / "tokenizer.json").write_bytes((text + "\n").encode())
    text = json.dumps({**named, "chat_template": template}, ensure_ascii=False, indent=1)
    (folder / "tokenizer_config.json").write_bytes((text + "\n").encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA)
