"""What genai_config.json says of a text folder: which file holds the graph, and what its inputs and outputs are called.

Written by convert_text.py, by onnxruntime_genai's model builder and by people, so nothing in it is taken on trust.
https://onnxruntime.ai/docs/genai/reference/config.html
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgecore.checkpoint.chat_source import optional_json
from edgecore.checkpoint.fields import Fields
from edgecore.checkpoint.tokenizer_special import ids
from edgecore.contract import Artifact, CorruptModel, ModelNotFound, UnsupportedModel

GENAI = "genai_config.json"
MOST_LAYERS = 1000
LONGEST = 255
"""Characters of a file's name that are believed."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Of a folder with one decoder."""

    model: Path
    context: int
    """Tokens that it was trained for; 0 where the file does not say."""
    vocab_size: int
    """Rows of logits; 0 where the file does not say."""
    ends: frozenset[int]
    """Tokens that end a generation."""
    kv_heads: int
    head_size: int
    ids: str
    mask: str
    positions: str
    """An input that not every graph has."""
    logits: str
    past: tuple[str, ...]
    """Inputs: the keys of a layer and its values, layer by layer."""
    present: tuple[str, ...]
    """Outputs, in the same order."""


def read(artifact: Artifact) -> Layout:
    """Of a made artifact and of a native folder. Raises `ModelNotFound`, `CorruptModel`, `UnsupportedModel`."""
    folder = artifact.model if artifact.model.is_dir() else artifact.model.parent
    file = folder / GENAI
    if not file.is_file():
        raise ModelNotFound(f"{file} does not exist", supported=f"{GENAI} beside the graph")
    model = _section(optional_json(file), "model")
    decoder = _section(model, "decoder")
    if decoder.has("pipeline") or not decoder.has("filename"):
        raise UnsupportedModel(f"{file}: a decoder in several graphs", supported="one graph, named in 'filename'")
    inputs, outputs = (decoder.section(key) or Fields(file, {}) for key in ("inputs", "outputs"))
    layers = range(decoder.integer("num_hidden_layers", most=MOST_LAYERS))
    past = [inputs.text(f"past_{kind}_names", f"past_key_values.%d.{kind}") for kind in ("key", "value")]
    present = [outputs.text(f"present_{kind}_names", f"present.%d.{kind}") for kind in ("key", "value")]
    return Layout(
        model=_inside(decoder, folder),
        context=model.integer("context_length", 0, least=0),
        vocab_size=model.integer("vocab_size", 0, least=0),
        ends=frozenset(ids(model.values.get("eos_token_id"))),
        kv_heads=decoder.integer("num_key_value_heads"),
        head_size=decoder.integer("head_size"),
        ids=inputs.text("input_ids", "input_ids"),
        mask=inputs.text("attention_mask", "attention_mask"),
        positions=inputs.text("position_ids", "position_ids"),
        logits=outputs.text("logits", "logits"),
        past=tuple(name.replace("%d", str(layer)) for layer in layers for name in past),
        present=tuple(name.replace("%d", str(layer)) for layer in layers for name in present),
    )


def _section(fields: Fields, key: str) -> Fields:
    found = fields.section(key)
    if found is None:
        raise fields.wrong(key, "is missing")
    return found


def _inside(decoder: Fields, folder: Path) -> Path:
    name = decoder.text("filename")
    if Path(name).name != name or len(name) > LONGEST:
        raise decoder.wrong("filename", f"{name!r} is no file of the folder")
    file = folder / name
    if not file.is_file():
        raise CorruptModel(f"{decoder.file}: field 'filename': {file} does not exist")
    return file
