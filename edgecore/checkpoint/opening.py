"""One door to the neutral model: a Hugging Face folder or a GGUF file, described without loading it.

Support is decided here, from headers alone and within a second; what is not supported is refused before anything is
downloaded, converted or run.
"""

from __future__ import annotations

import mmap
import re
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint.decoder import Decoder
from edgecore.checkpoint.families import Family, known
from edgecore.checkpoint.fields import Fields
from edgecore.checkpoint.gguf_file import GgufTensor, read_gguf
from edgecore.checkpoint.mapping import read_text
from edgecore.checkpoint.safetensors_file import parse_json, read_folder
from edgecore.checkpoint.tensors import Tensor
from edgecore.contract.errors import CorruptModel, ModelNotFound, UnsupportedModel

if TYPE_CHECKING:
    from edgecore.checkpoint.tokenizer import Tokenizer

LARGEST_CONFIG = 10_000_000
"""Bytes of a JSON file beside the weights, the tokenizer's apart."""
LAYERS = "model.layers."
SUPPORTED = "a Hugging Face folder, or a GGUF file"


def open_checkpoint(path: Path) -> Checkpoint:
    """Describes the model at `path`: a Hugging Face folder or a GGUF file. Reads headers only.

    Raises `ModelNotFound`; `CorruptModel` naming file and field; `UnsupportedModel` naming the supported families.
    """
    path = Path(path)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError):  # a name that no file can have is the name of none
        is_folder = is_file = False
    if is_folder:
        return _open_folder(path)
    if is_file:
        return _open_gguf(path)
    raise ModelNotFound(f"{path}: no such file or folder", supported=SUPPORTED)


@dataclass(eq=False)
class Checkpoint:
    """A model as data: what it computes, its weights by canonical name, how it reads and writes text.

    Everything is valid until `close`; arrays that were read stay valid after it.
    """

    path: Path
    source_format: str
    """`gguf` or `huggingface`."""
    name: str
    """What the model calls itself, else the file's name."""
    decoder: Decoder
    tensors: Mapping[str, Tensor]
    """Canonical name to tensor, in the order of the computation; nothing is read before `Tensor.read`."""
    metadata: Mapping[str, Any]
    """The source's own header, as it stands: config.json, or GGUF metadata (arrays as `GgufArray`)."""
    _mappings: list[mmap.mmap] = field(default_factory=list, repr=False)

    @cached_property
    def parameters(self) -> int:
        """Weights over all tensors; a tied matrix counts once."""
        return sum(tensor.elements for tensor in self.tensors.values())

    @cached_property
    def storage(self) -> dict[str, int]:
        """Bytes by storage type, the largest first: `{"Q4_1": 66355200, "Q8_0": 30081024, ...}`."""
        sums: dict[str, int] = {}
        for tensor in self.tensors.values():
            sums[tensor.storage] = sums.get(tensor.storage, 0) + tensor.nbytes
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Built when first asked for. Raises `UnsupportedModel` for kinds that are not supported."""
        from edgecore.checkpoint.tokenizer import load_tokenizer

        return load_tokenizer(self.path, self.source_format, self.metadata, self.decoder.vocab_size)

    @cached_property
    def chat_template(self) -> str | None:
        """Jinja source, None where the model has none. Does not build the tokenizer."""
        if self.source_format == "gguf":
            return Fields(self.path, self.metadata).text("tokenizer.chat_template", None)
        from edgecore.checkpoint.chat_source import folder_template

        return folder_template(self.path)

    def forget(self) -> None:
        """Let go of the pages that were read; the system keeps them while it has room, and reads them again if need be.

        For whoever walks through all weights once and answers for the memory of this process.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._mappings:
                mapped.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Give the mappings back; those that arrays still look into go with the arrays."""
        self.tensors = {}
        self.__dict__.pop("tokenizer", None)
        for mapped in self._mappings:
            with suppress(BufferError):
                mapped.close()
        self._mappings.clear()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_folder(folder: Path) -> None:
    """Whether a Hugging Face folder is supported as far as config.json and the tokenizer tell, its weights not yet
    there. Raises as `open_checkpoint`."""
    _described(_config(folder))


def folder_decoder(folder: Path) -> Decoder | None:
    """What a folder's config.json describes, however its weights are packed; None where no family has its `model_type`.

    Raises `ModelNotFound`, `CorruptModel`; `UnsupportedModel` for what a family has and the neutral model has not.
    """
    config = _config(folder)
    kind = config.text("model_type", "")
    family = next((family for family in known() if kind in family.model_types), None)
    if family is None:
        return None
    how = config.section("quantization_config")
    if how is not None and how.text("quant_method", "") not in family.quantizations:
        # Not the family's: somebody packed its weights, and says so in the same place.
        config = replace(config, values={k: v for k, v in config.values.items() if k != "quantization_config"})
    return family.from_config(config)


def _open_folder(folder: Path) -> Checkpoint:
    config = _config(folder)
    family, decoder = _described(config)
    stored, mappings = read_folder(folder)
    found = _parted(decoder, family, family.adopt(config, stored) if family.adopt else stored)
    tied = ("lm_head.weight",) if decoder.tied else ()
    return Checkpoint(
        path=folder,
        source_format="huggingface",
        name=config.text("_name_or_path", None) or folder.resolve().name,
        decoder=decoder,
        tensors=_checked(folder, decoder, found, (*family.ignored, *tied)),
        metadata=config.values,
        _mappings=mappings,
    )


def _config(folder: Path) -> Fields:
    file = folder / "config.json"
    if not file.is_file():
        raise ModelNotFound(f"{folder}: has no config.json", supported=SUPPORTED)
    return Fields(file, parse_json(file, read_text(file, LARGEST_CONFIG)))


def _described(config: Fields) -> tuple[Family, Decoder]:
    """From config.json and the tokenizer's kind. Raises `UnsupportedModel` that names the exporters that take it."""
    from edgecore.checkpoint.tokenizer_kind import check_tokenizer

    try:
        family = _family_of(config)
        if (packing := config.section("quantization_config")) is not None:
            method = packing.text("quant_method", "mlx" if config.has("quantization") else "unknown")
            if method not in family.quantizations:
                raise UnsupportedModel(
                    f"{config.file}: field 'quantization_config': weights packed by {method!r}",
                    supported=", ".join(["F32, F16 and BF16 weights", *family.quantizations]),
                )
        decoder = family.from_config(config)
        check_tokenizer(config.file.parent, "huggingface", config.values)
        return family, decoder
    except UnsupportedModel as error:
        from edgecore.checkpoint.exporters import advised

        raise advised(error, config) from None


def _family_of(config: Fields) -> Family:
    kind = config.text("model_type", "")
    for family in known():
        if kind in family.model_types:
            return family
    from edgecore.checkpoint.exporters import named_architectures

    what = f"{config.file}: field 'model_type': {kind!r}"
    if names := named_architectures(config):
        what += f" ({', '.join(names)})"
    if (inner := config.section("text_config")) is not None:
        what += f", a wrapper of text model {inner.text('model_type', 'unnamed')!r} and others,"
    raise _unsupported(what)


def _open_gguf(file: Path) -> Checkpoint:
    from edgecore.checkpoint.tokenizer_kind import check_tokenizer

    header, mapped = read_gguf(file)
    metadata = Fields(file, header.metadata)
    if (parts := metadata.integer("split.count", 0, least=0)) > 1:
        raise UnsupportedModel(
            f"{file}: field 'split.count': one file of {parts}",
            supported="GGUF in one file",
            hint=f"llama-gguf-split --merge {shlex.quote(str(file))} merged.gguf",
        )
    architecture = metadata.text("general.architecture")
    try:
        family = next((f for f in known() if architecture in f.gguf_architectures), None)
        if family is None:
            raise _unsupported(f"{file}: field 'general.architecture': {architecture!r}")
        decoder = family.from_gguf(Fields(file, header.metadata, architecture + "."), header.tensors)
        check_tokenizer(file, "gguf", header.metadata)
    except UnsupportedModel as error:
        from edgecore.checkpoint.exporters import advised_gguf

        raise advised_gguf(error, file, architecture) from None
    stored = {t.name: t for t in (_canonical(file, tensor, family, decoder) for tensor in header.tensors.values())}
    found = _parted(decoder, family, stored)
    return Checkpoint(
        path=file,
        source_format="gguf",
        name=metadata.text("general.name", None) or file.stem,
        decoder=decoder,
        tensors=_checked(file, decoder, found, family.ignored),
        metadata=header.metadata,
        _mappings=[mapped],
    )


_LAYER = re.compile(r"^blk\.(\d{1,6})\.")


def _canonical(file: Path, tensor: GgufTensor, family: Family, decoder: Decoder) -> Tensor:
    """The tensor under its canonical name; one that is not known keeps its own and is refused later."""
    stem, _, kind = tensor.name.rpartition(".")
    layer = _LAYER.match(stem)
    number = layer.group(1) if layer else ""
    known_stem = family.gguf_names.get(_LAYER.sub("blk.{}.", stem))
    if known_stem is None:
        return Tensor(tensor.name, tensor.shape, tensor.type, tensor.data, file=file)
    order = None
    if family.interleaved and stem.endswith((".attn_q", ".attn_k")):
        order = half_rotation_order(decoder.heads if stem.endswith("q") else decoder.kv_heads, decoder.head_dim)
        if tensor.shape[0] != len(order):
            order = None  # a wrong shape: refused by name later
    name = f"{known_stem.format(number)}.{kind}"
    return Tensor(name, tensor.shape, tensor.type, tensor.data, order, file=file)


def _parted(decoder: Decoder, family: Family, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fused matrices as views of their parts; one whose rows do not add up stays whole and is refused later."""
    if not family.fused:
        return dict(found)
    shapes = decoder.shapes()
    parted: dict[str, Tensor] = {}
    for name, tensor in found.items():
        stem, _, kind = name.rpartition(".")
        at = stem[: stem.index(".", len(LAYERS)) + 1] if stem.startswith(LAYERS) and "." in stem[len(LAYERS) :] else ""
        parts = [f"{at}{part}.{kind}" for part in family.fused.get(stem[len(at) :], ())] if at else []
        rows = [shapes[part][0] for part in parts if part in shapes]
        if not parts or len(rows) != len(parts) or sum(rows) != tensor.shape[0]:
            parted[name] = tensor
            continue
        start, row_bytes = 0, tensor.nbytes // tensor.shape[0]
        for part, count in zip(parts, rows, strict=True):
            data = tensor.data[start * row_bytes : (start + count) * row_bytes]
            parted[part] = replace(tensor, name=part, shape=(count, *tensor.shape[1:]), data=data)
            start += count
    return parted


def half_rotation_order(heads: int, head_dim: int) -> NDArray[np.intp]:
    """Where each row of a q or k matrix in half-rotation order lies in llama.cpp's interleaved order.

    llama.cpp's converter (`permute`) puts rows i and i + d/2 of a head beside each other, at 2i and 2i + 1.
    """
    within = np.arange(head_dim).reshape(-1, 2).T.ravel()
    return (np.arange(heads)[:, None] * head_dim + within).ravel().astype(np.intp)


def _checked(path: Path, decoder: Decoder, found: Mapping[str, Tensor], ignored: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors that the description asks for, all of them and no other: a surplus one would be silently left out."""
    wanted = decoder.shapes()
    surplus = [name for name in found if name not in wanted and not name.endswith(ignored)]
    if surplus:
        raise UnsupportedModel(
            f"{path}: tensor {surplus[0]!r} and {len(surplus) - 1} more have no place in family {decoder.family!r}"
            if len(surplus) > 1
            else f"{path}: tensor {surplus[0]!r} has no place in family {decoder.family!r}",
            supported="the tensors of " + ", ".join(f.name for f in known()),
        )
    checked: dict[str, Tensor] = {}
    for name, shape in wanted.items():
        tensor = found.get(name)
        if tensor is None:
            raise CorruptModel(f"{path}: tensor {name!r}: is missing")
        if tensor.shape != shape:
            raise CorruptModel(f"{path}: tensor {name!r}: has shape {tensor.shape}, the header asks for {shape}")
        if not tensor.type.readable:
            raise UnsupportedModel(
                f"{path}: tensor {name!r}: storage type {tensor.storage}",
                supported="F32, F16, BF16, GGUF's quantized types",
            )
        checked[name] = tensor
    return checked


def _unsupported(what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{what} is not a family of the neutral model", supported=", ".join(f.name for f in known())
    )
