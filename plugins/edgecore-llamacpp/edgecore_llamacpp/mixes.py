"""llama.cpp's quantizations as data: what each name stands for, and what became of a tensor that did not fit.

A name like Q4_K_M is a mix: most tensors get its base type, some a larger one, chosen in `llama-quant.cpp`. That
choice is not repeated here. One fact about it is enough to tell a plan from a fallback: a mix whose base has blocks of
256 plans only types with blocks of 256, so a row that does not divide by 256 got something else, whatever it got; and
so did the embeddings and the head, for which nearly every mix plans such a type.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from edgecore.checkpoint.gguf_file import GgufTensor
from edgecore.checkpoint.storage import GGML
from edgecore.contract import Fallback, UnsupportedPrecision
from edgecore_llamacpp.native import libllama
from edgecore_llamacpp.weights import is_matrix

SUPERBLOCK = 256
_BLOCK = {storage.name: storage.block for storage in GGML.values()}
_BITS = {storage.name: 8 * storage.size / storage.block for storage in GGML.values()}
_NUMBER = {storage.name: number for number, storage in GGML.items()}

BASE = {
    "q8_0": "Q8_0", "q6_k": "Q6_K", "q5_k_m": "Q5_K", "q5_k_s": "Q5_K", "q5_1": "Q5_1", "q5_0": "Q5_0",
    "q4_k_m": "Q4_K", "q4_k_s": "Q4_K", "q4_1": "Q4_1", "q4_0": "Q4_0", "iq4_nl": "IQ4_NL", "iq4_xs": "IQ4_XS",
    "mxfp4": "MXFP4", "q3_k_l": "Q3_K", "q3_k_m": "Q3_K", "q3_k_s": "Q3_K", "iq3_m": "IQ3_S", "iq3_s": "IQ3_S",
    "iq3_xs": "IQ3_S", "iq3_xxs": "IQ3_XXS", "q2_k": "Q2_K", "q2_k_s": "Q2_K", "iq2_m": "IQ2_S", "iq2_s": "IQ2_XS",
    "iq2_xs": "IQ2_XS", "iq2_xxs": "IQ2_XXS", "iq1_m": "IQ1_M", "iq1_s": "IQ1_S", "tq2_0": "TQ2_0", "tq1_0": "TQ1_0",
}  # fmt: skip
"""Precision to the type of most of its tensors (`llama_ftype_get_default_type`)."""
ALSO_PLANNED = {"q4_0": {"Q4_1"}, "q5_0": {"Q5_1"}, "mxfp4": {"Q8_0"}}
"""Other types with blocks of 32 that a mix plans: Q4_0's and Q5_0's first layers with an importance matrix, and the
embeddings of MXFP4."""
_FALLBACK = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "TQ1_0": "Q4_0",
    "TQ2_0": "Q4_0",
}
"""`tensor_type_fallback`; IQ types fall back to IQ4_NL."""


def file_type(precision: str) -> int:
    """libllama's number of a mix. MXFP4 exists for experts alone; a rule makes it one for dense models."""
    name = "MXFP4_MOE" if precision == "mxfp4" else precision.upper()
    return int(getattr(libllama, f"LLAMA_FTYPE_MOSTLY_{name}"))


def type_number(name: str) -> int:
    """ggml's number of a tensor type, by its name in any case. Raises `UnsupportedPrecision`."""
    number = _NUMBER.get(name.upper())
    if number is None:
        raise UnsupportedPrecision(f"tensor type {name!r}", supported=", ".join(_NUMBER))
    return number


def fallbacks(tensors: Mapping[str, GgufTensor], precision: str, forced: Iterable[str] = ()) -> Iterator[Fallback]:
    """The matrices of a finished file that did not get what the mix plans. `forced`: types that options asked for."""
    base = BASE[precision]
    fine = {base, *forced} | ALSO_PLANNED.get(precision, set())
    for tensor in tensors.values():
        columns, got = tensor.shape[-1], tensor.type.name
        if not is_matrix(tensor) or columns % SUPERBLOCK == 0 or (got in fine and _BLOCK[got] < SUPERBLOCK):
            continue
        block = _BLOCK[base] if columns % 32 else SUPERBLOCK
        yield Fallback(tensor.name, got, f"rows of {columns} do not divide into blocks of {block}")


def predicted_bytes(tensors: Mapping[str, GgufTensor], precision: str) -> int:
    """About what quantizing these tensors will write, for a progress bar."""
    total = 0.0
    for tensor in tensors.values():
        elements = math.prod(tensor.shape)
        total += elements * _planned_bits(tensor, precision) / 8 if is_matrix(tensor) else tensor.data.nbytes
    return int(total)


def _planned_bits(tensor: GgufTensor, precision: str) -> float:
    base = BASE[precision]
    if not tensor.name.startswith("blk."):
        base = "Q8_0" if base in ("Q8_0", "MXFP4") else "Q6_K"
    if tensor.shape[-1] % _BLOCK[base]:
        base = _FALLBACK.get(base, "IQ4_NL" if base.startswith("IQ") else "F16")
    return _BITS[base]
