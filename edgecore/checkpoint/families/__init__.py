"""Which decoders are known. A new family is one file beside this one, a line below, and a golden."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from edgecore.checkpoint.decoder import Decoder
from edgecore.checkpoint.fields import Fields
from edgecore.checkpoint.tensors import Tensor
from edgecore.contract.errors import UnsupportedModel

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3", "bitnet")
"""Modules of this package; each has a `FAMILY`."""


@dataclass(frozen=True, slots=True)
class Family:
    """What differs from family to family in the files; what differs in the computation stands in the `Decoder`."""

    name: str
    model_types: tuple[str, ...]
    """`model_type` values of Hugging Face configs."""
    gguf_architectures: tuple[str, ...]
    """`general.architecture` values of GGUF files, first the one to write. Where two families share one, the first
    family reads it."""
    from_config: Callable[[Fields], Decoder]
    """Reads config.json. Raises `CorruptModel`, `UnsupportedModel`."""
    from_gguf: Callable[[Fields, Mapping[str, object]], Decoder]
    """Reads GGUF metadata (the architecture as prefix); the second argument has the file's tensors by GGUF name."""
    gguf_names: Mapping[str, str]
    """GGUF tensor names to canonical ones, without `.weight` and `.bias`; `{}` stands for the layer."""
    interleaved: bool = False
    """GGUF files keep q and k rows in interleaved rotary order."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Matrices that files keep as one, each with the names of its parts from the first row on; all without
    `model.layers.N.` and `.weight`."""
    adopt: Callable[[Fields, Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    """What becomes of a Hugging Face folder's tensors, where they are not the weights as they stand."""
    quantizations: tuple[str, ...] = ()
    """`quant_method` values of Hugging Face configs that `adopt` reads."""
    to_config: Callable[[Decoder], dict[str, Any]] | None = None
    """What config.json says of a decoder: the way back of `from_config`, for what writes Hugging Face folders. The
    tokenizer's ids and the weights' type are not in it. Raises `UnsupportedModel` for what it cannot say."""
    norm_offset: float = 0.0
    """Hugging Face folders keep norm weights less this."""
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq", "rope_freqs.weight")
    """Ends of tensor names that say nothing that the description does not."""


def family_of(decoder: Decoder) -> Family:
    """The decoder's family. Raises `UnsupportedModel` for a name that none has."""
    by_name = {family.name: family for family in known()}
    if decoder.family not in by_name:
        raise UnsupportedModel(f"family {decoder.family!r}", supported=", ".join(by_name))
    return by_name[decoder.family]


def known() -> tuple[Family, ...]:
    """All families, in the order of `FAMILIES`."""
    return tuple(import_module(f"{__name__}.{module}").FAMILY for module in FAMILIES)
