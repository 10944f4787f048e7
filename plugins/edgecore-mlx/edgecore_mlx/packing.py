"""Which matrices of a folder are packed, and how: what config.json says under `quantization`, read and written.

    {"group_size": 64, "bits": 4, "mode": "affine", "model.layers.0.mlp.down_proj": {"group_size": 64, "bits": 6, ...}}

A packed matrix is NAME.weight (uint32: the levels of a row as one stream of bits, lowest first), NAME.scales, one a
group, and in mode affine NAME.biases: weight = scale * level + bias.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from edgecore.checkpoint.fields import MISSING, Fields, short
from edgecore.contract import CorruptModel, UnsupportedModel
from edgecore_mlx.recipe import AFFINE, GROUPS, Packing

BITS: Mapping[str, tuple[int, ...]] = {AFFINE: (1, 2, 3, 4, 5, 6, 8), "mxfp4": (4,), "mxfp8": (8,), "nvfp4": (4,)}
KEYS = ("quantization", "quantization_config")
"""The first is mlx_lm's; it writes the same under the second, where others look."""
_OWN = "quant_method"
"""In a `quantization_config` of somebody else's."""
_LEGACY = {"mxfp4": Packing(4, 32, "mxfp4"), "mxfp8": Packing(8, 32, "mxfp8")}
"""Methods of others that name what MLX has too."""
_PLAIN: Mapping[str, Packing] = {mode: Packing(bits[0], GROUPS[mode][0], mode) for mode, bits in BITS.items()} | {
    AFFINE: Packing(4, 64)
}
"""What MLX takes where neither bits nor group size are given, by mode."""
OF_PACKED = ("scales", "biases", "weight_scale")
"""What stands beside a packed NAME.weight; the last beside BitNet's."""


class Sized(Protocol):
    """An array, stored or to be written."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class Quantization:
    """What a config.json says of packed matrices."""

    default: Packing | None = None
    named: Mapping[str, Packing | None] = field(default_factory=dict)
    """By module path; None: left as it is."""

    def of(self, path: str, weights: Mapping[str, Sized], columns: int | None = None) -> Packing | None:
        """How the matrix of the module at `path` is packed; None where it is not.

        As mlx_lm: what the config names counts, else what the arrays tell.
        columns: of the matrix unpacked, where that is known: without it the arrays alone may be ambiguous.
        Raises `CorruptModel` for arrays that are no such packing.
        """
        scales, weight = weights.get(f"{path}.scales"), weights.get(f"{path}.weight")
        if scales is None or weight is None:
            if self.named.get(path) is None:
                return None
            raise CorruptModel(f"tensor {path + '.scales'!r}: is missing, though {KEYS[0]!r} names {path!r}")
        said = self.named.get(path, self.default)
        possible = list(_possible(weight, scales, columns))
        if said in possible:
            return said
        if path not in self.named and len(possible) == 1:
            return possible[0]
        shapes = f"{weight.dtype} {weight.shape} with scales {scales.dtype} {scales.shape}"
        raise CorruptModel(f"tensor {path + '.weight'!r}: {shapes} is not {said or 'packed in one known way'}")


def quantization(config: Fields) -> Quantization:
    """Raises `CorruptModel`, and `UnsupportedModel` for packing that is not MLX's."""
    section = config.section(KEYS[0])
    if section is None:
        section = config.section(KEYS[1])
        if section is None or is_ternary(config):
            return Quantization()
        if section.has(_OWN):
            method = section.text(_OWN)
            if method not in _LEGACY:
                raise UnsupportedModel(
                    f"{config.file}: field {KEYS[1]!r}: weights packed by {method!r}",
                    supported=", ".join(["MLX's own quantization", *_LEGACY]),
                    hint=f"mlx_lm.convert --hf-path {config.file.parent} --mlx-path OUT",
                )
            return Quantization(_LEGACY[method])
    default = _packing(section)
    named = {
        path: (default if value else None) if isinstance(value, bool) else _packing(Fields(config.file, value), True)
        for path, value in section.values.items()
        if isinstance(value, bool | Mapping)
    }
    return Quantization(default, named)


def with_quantization(config: Mapping[str, Any], packings: Mapping[str, Packing]) -> dict[str, Any]:
    """`config` that says how the matrices at these module paths are packed: the commonest way for all, the others by
    name. What somebody else's loader must know of the model (BitNet's rounded activations) stays."""
    said = dict(config)
    if not packings:
        return said
    ((common, _),) = Counter(packings.values()).most_common(1)
    values = common.config() | {path: p.config() for path, p in packings.items() if p != common}
    said[KEYS[0]] = values
    if said.get(KEYS[1], {}).get(_OWN) != "bitnet":
        said[KEYS[1]] = values
    return said


def is_ternary(config: Fields) -> bool:
    """Whether `quantization_config` is BitNet's, which packs in its own way and says how activations are rounded."""
    section = config.section(KEYS[1])
    return section is not None and section.text(_OWN, "") == "bitnet"


def _packing(section: Fields, of_a_module: bool = False) -> Packing:
    """of_a_module: what is not said is as MLX has it in that mode; mlx_lm.convert's mixed recipes say no group size
    where none was asked for."""
    mode = section.text("mode", AFFINE)
    if mode not in GROUPS:
        raise UnsupportedModel(f"{section.file}: field 'mode': {short(mode)}", supported=", ".join(GROUPS))
    plain = _PLAIN[mode].config() if of_a_module else {}
    bits, group = (section.integer(key, plain.get(key, MISSING)) for key in ("bits", "group_size"))
    if bits not in BITS[mode] or group not in GROUPS[mode]:
        raise UnsupportedModel(
            f"{section.file}: field {KEYS[0]!r}: {Packing(bits, group, mode)}",
            supported=f"{', '.join(map(str, BITS[mode]))} bits in groups of {', '.join(map(str, GROUPS[mode]))}",
        )
    return Packing(bits, group, mode)


def _possible(weight: Sized, scales: Sized, columns: int | None) -> Iterator[Packing]:
    """Packings that give arrays of these shapes."""
    words, groups = 32 * weight.shape[-1], scales.shape[-1]
    for mode, sizes in GROUPS.items():
        if weight.dtype != "U32" or (mode == AFFINE) == (scales.dtype == "U8"):
            continue
        for size in sizes:
            for bits in BITS[mode]:
                wide = groups * size
                if wide * bits == words and columns in (None, wide) and weight.shape[:-1] == scales.shape[:-1]:
                    yield Packing(bits, size, mode)
