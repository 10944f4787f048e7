"""A text model is a folder, and the ONNX is two files of it: here is everything else, for our sessions and for GenAI's.

    model.onnx, model.onnx.data                           the graph: convert_text.py and quantize_text.py write it
    genai_config.json                                     what onnxruntime_genai reads of all this
    tokenizer.json or tokenizer.model, and their like     the tokenizer, for both
    config.json, generation_config.json, chat_template.jinja

Folders that onnxruntime_genai's model builder made have the same names, so both are opened by the same functions.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from edgecore.checkpoint import Checkpoint, Decoder, RopeScaling, beside, folder_config
from edgecore.checkpoint.beside import CONFIG, GENERATION, longrope_context, open_tokenizer, trained_context, write_json
from edgecore.checkpoint.tokenizer_out import COPIED, has_tokenizer
from edgecore.contract import Artifact, PayloadFile
from edgecore_onnxruntime import layout
from edgecore_onnxruntime.layout import GENAI

__all__ = ["longrope_context", "open_tokenizer", "trained_context"]
MODEL, WEIGHTS = "model.onnx", "model.onnx.data"
JSON = "tokenizer.json"
NOT_FOR_GENAI = "without it onnxruntime_genai takes and gives token ids, no text"
CONFIGS = (CONFIG, GENERATION, GENAI)
_BORDERS = {"phi3": 4096, "phi3small": 8192}
"""Model types by which onnxruntime_genai knows where longrope turns a text otherwise."""


def model_file(artifact: Artifact) -> Path:
    """The .onnx, of a made artifact and of a native folder. Raises as `layout.read`."""
    return layout.read(artifact).model


def write_beside(model: Checkpoint, out: Path) -> tuple[list[PayloadFile], list[str]]:
    """Everything of the folder but the graph and genai_config.json, and what a person should know about it."""
    names = [CONFIG, *beside.write_beside(model, out)]
    write_json(out / CONFIG, folder_config(model, "f16"))
    if not has_tokenizer(model):
        return payload(names), [f"the source has no tokenizer: {NOT_FOR_GENAI}"]
    return payload(names), [] if JSON in names else [f"the source has no {JSON}: {NOT_FOR_GENAI}; edgecore does"]


def write_genai(model: Checkpoint, out: Path, context: int) -> PayloadFile:
    """genai_config.json: where onnxruntime_genai finds what, and how it stops."""
    special, ends = _special(model)
    decoder = model.decoder
    config = {
        "model": {
            "type": _genai_type(decoder),
            "vocab_size": decoder.vocab_size,
            "context_length": context,
            "bos_token_id": special.get("bos", 0),
            "eos_token_id": ends or [0],
            "pad_token_id": special.get("padding", ends[0] if ends else 0),
            "decoder": {
                "filename": MODEL,
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "hidden_size": decoder.hidden_size,
                "head_size": decoder.head_dim,
                "num_attention_heads": decoder.heads,
                "num_key_value_heads": decoder.kv_heads,
                "num_hidden_layers": decoder.layers,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"do_sample": False, "max_length": context, "past_present_share_buffer": True},
    }
    write_json(out / GENAI, config)
    return payload([GENAI])[0]


def copy_beside(source: Path, out: Path) -> list[PayloadFile]:
    """The same files from one folder into another, for what only changes the graph."""
    names = [name for name in dict.fromkeys((*COPIED, *CONFIGS)) if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, out / name)
    return payload(names)


def payload(names: list[str]) -> list[PayloadFile]:
    """Files of the folder with their roles."""
    return [PayloadFile(name, _role(name)) for name in dict.fromkeys(names)]


def genai_border(decoder: Decoder) -> int:
    """Tokens after which onnxruntime_genai computes a longrope text anew, as it should; 0: it never does."""
    return decoder.rope.original_context if _genai_type(decoder) in _BORDERS else 0


def _genai_type(decoder: Decoder) -> str:
    """What onnxruntime_genai does by a model's type, ours needs in one thing only: longrope's border."""
    longrope = decoder.rope.scaling is RopeScaling.LONGROPE
    known = [type for type, border in _BORDERS.items() if longrope and border == decoder.rope.original_context]
    return known[0] if known else "decoder"


def _special(model: Checkpoint) -> tuple[Mapping[str, int], list[int]]:
    """Special tokens by role, and every token that ends our sessions, so that GenAI's end there."""
    if not has_tokenizer(model):
        return {}, []
    tokenizer = model.tokenizer
    return tokenizer.special, beside.ends(tokenizer)


def _role(name: str) -> str:
    if name == MODEL:
        return "model"
    if name == WEIGHTS:
        return "weights"
    if name in CONFIGS:
        return "config"
    return "tokenizer" if name in COPIED else "other"
