"""BitNet b1.58: Llama with ternary weights, 8-bit activations, squared ReLU, and norms before the last projection of
each half of a layer.

A folder without `quantization_config` holds plain weights. With one, `linear_class` and `quantization_mode` say whether
they are finished (packed or not, beside a `weight_scale`) or still to be rounded. A GGUF file holds finished weights,
nothing of 8-bit activations, and means SiLU: so llama.cpp computes this architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgecore.checkpoint.decoder import Activation, Decoder
from edgecore.checkpoint.derived import TERNARY, Rounded, Scaled, Unpacked
from edgecore.checkpoint.families import Family, common
from edgecore.checkpoint.families.written import bias_of_attention, written_config
from edgecore.checkpoint.fields import Fields
from edgecore.checkpoint.tensors import Tensor
from edgecore.contract.errors import CorruptModel, UnsupportedModel

SCALE = ".weight_scale"
FINISHED = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
"""The `quantization_config` of weights that were rounded when the training ended."""


def _from_config(config: Fields) -> Decoder:
    sizes = common.config_sizes(config, kv_heads=5)
    bias = config.flag("attention_bias", False)
    return Decoder(
        family="bitnet",
        rope=common.config_rope(config, sizes["head_dim"], theta=500000.0),
        tied=config.flag("tie_word_embeddings", False),
        activation=common.config_activation(config, {"relu2": Activation.RELU2, **common.SILU}),
        attention_bias=bias,
        output_bias=bias,
        sub_norms=True,
        int8_activations=config.has("quantization_config"),
        **sizes,
    )


def _from_gguf(metadata: Fields, tensors: Mapping[str, Any]) -> Decoder:
    sizes = common.gguf_sizes(metadata, tensors)
    return Decoder(
        family="bitnet", rope=common.gguf_rope(metadata, tensors, sizes["head_dim"]), sub_norms=True, **sizes
    )


def _adopt(config: Fields, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Packed weights with their scale, or master weights that are rounded; the embeddings and the head are neither."""
    how = config.section("quantization_config")
    if how is None:
        return dict(tensors)
    if how.flag("use_rms_norm", False):
        raise UnsupportedModel(f"{config.file}: field 'use_rms_norm': true", supported="norms of the model's own")
    kind, mode = how.text("linear_class", "bitlinear"), how.text("quantization_mode", "offline")
    if kind not in ("bitlinear", "autobitlinear") or mode not in ("offline", "online"):
        raise UnsupportedModel(
            f"{config.file}: field 'quantization_config': {kind!r}, {mode!r}",
            supported="linear_class bitlinear or autobitlinear, quantization_mode offline or online",
        )
    online = (kind, mode) == ("autobitlinear", "online")
    adopted: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not name.endswith("_proj.weight"):
            if not name.endswith(SCALE):
                adopted[name] = tensor
        elif online:
            adopted[name] = replace(tensor, derive=Rounded())
        else:
            scale = _scale(config, tensors, name.removesuffix(".weight") + SCALE)
            # transformers' BitLinear divides by what it stores, AutoBitLinear multiplies.
            adopted[name] = _finished(config, tensor, scale if kind == "autobitlinear" else 1 / scale)
    return adopted


def _scale(config: Fields, tensors: Mapping[str, Tensor], name: str) -> float:
    found = tensors.get(name)
    if found is None:
        raise CorruptModel(f"{config.file.parent}: tensor {name!r}: is missing")
    if found.elements != 1 or not found.type.readable:
        raise CorruptModel(f"{config.file.parent}: tensor {name!r}: {found.storage} {found.shape} is not one number")
    scale = float(found.read().reshape(-1)[0])
    if not 1e-12 < abs(scale) < 1e12:
        raise CorruptModel(f"{config.file.parent}: tensor {name!r}: {scale} is no scale")
    return scale


def _finished(config: Fields, tensor: Tensor, scale: float) -> Tensor:
    """Ternary weights as numbers, or packed, four rows to a byte."""
    if tensor.type.readable:
        return replace(tensor, derive=Scaled(scale))
    if tensor.storage != "U8" or len(tensor.shape) != 2:
        raise CorruptModel(
            f"{config.file.parent}: tensor {tensor.name!r}: {tensor.storage} {tensor.shape} is no packed matrix (U8)"
        )
    rows, columns = tensor.shape
    return replace(tensor, shape=(4 * rows, columns), type=TERNARY, derive=Unpacked(scale))


def _to_config(decoder: Decoder) -> dict[str, Any]:
    """Finished weights where activations are rounded: their scale stands beside them, packed or not."""
    config = written_config(decoder, "BitNetForCausalLM", attention_bias=bias_of_attention(decoder))
    return config | ({"quantization_config": FINISHED} if decoder.int8_activations else {})


FAMILY = Family(
    name="bitnet",
    model_types=("bitnet",),
    gguf_architectures=("bitnet",),
    from_config=_from_config,
    from_gguf=_from_gguf,
    gguf_names=common.GGUF_NAMES
    | {
        "blk.{}.attn_sub_norm": "model.layers.{}.self_attn.attn_sub_norm",
        "blk.{}.ffn_sub_norm": "model.layers.{}.mlp.ffn_sub_norm",
    },
    adopt=_adopt,
    quantizations=("bitnet",),
    to_config=_to_config,
)
