"""Which decoders are known. A new family is one file beside this one, a line below, and a golden."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module

from edgecore.checkpoint.decoder import Decoder
from edgecore.checkpoint.fields import Fields

FAMILIES = ("llama",)
"""Modules of this package; each has a `FAMILY`."""


@dataclass(frozen=True, slots=True)
class Family:
    """What differs from family to family in the files; what differs in the computation stands in the `Decoder`."""

    name: str
    model_types: tuple[str, ...]
    """`model_type` values of Hugging Face configs."""
    gguf_architectures: tuple[str, ...]
    """`general.architecture` values of GGUF files."""
    from_config: Callable[[Fields], Decoder]
    """Reads config.json. Raises `CorruptModel`, `UnsupportedModel`."""
    from_gguf: Callable[[Fields, Mapping[str, object]], Decoder]
    """Reads GGUF metadata (the architecture as prefix); the second argument has the file's tensors by GGUF name."""
    gguf_names: Mapping[str, str]
    """GGUF tensor names to canonical ones, without `.weight` and `.bias`; `{}` stands for the layer."""
    interleaved: bool = False
    """GGUF files keep q and k rows in interleaved rotary order."""
    ignored: tuple[str, ...] = ()
    """Ends of tensor names that say nothing that the description does not."""


def known() -> tuple[Family, ...]:
    """All families, in the order of `FAMILIES`."""
    return tuple(import_module(f"{__name__}.{module}").FAMILY for module in FAMILIES)
