"""What mlx-lm learns from a text, on the user's text instead of those that it downloads: DWQ, AWQ, its GPTQ, and the
choice of bits by sensitivity. One file a method: learned_dwq.py, learned_awq.py, learned_gptq.py, learned_dynamic.py.

It is mlx_lm that computes the model here, so a model that it computes otherwise than it means is refused. On a CPU all
is float32: MLX's float16 is unusably slow there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from ml_dtypes import bfloat16
from mlx.utils import tree_flatten, tree_unflatten
from numpy.typing import NDArray

from edgecore.checkpoint import folder_decoder
from edgecore.contract import BadRequest, Progress, UnsupportedModel, Value
from edgecore_mlx import affine, elsewhere, folder, installation, memory
from edgecore_mlx.affine import Small
from edgecore_mlx.recipe import AFFINE, GROUPS, MSE, Packing, Recipe

BITS: Mapping[str, tuple[int, ...]] = {
    "dwq": (2, 3, 4, 5, 6), "awq": (2, 3, 4, 5, 6), "mlx_gptq": (2, 4), "dynamic": (3, 4, 5, 6),
}  # fmt: skip
"""Bits of the layers that each can make. DWQ does not train 8, mlx-lm's GPTQ packs powers of two, and with 2 bits the
scales take all that may be added."""
ALGORITHMS = tuple(BITS)
_FILES = {"dwq": "learned_dwq", "awq": "learned_awq", "mlx_gptq": "learned_gptq", "dynamic": "learned_dynamic"}
_UNIFORM = ("awq", "mlx_gptq", "dynamic")
"""Pack all matrices of the layers alike, or begin with that."""
_COPIES = {"dwq": 2, "awq": 2, "mlx_gptq": 1, "dynamic": 4}
"""Of the weights, as they are computed with, that are in memory at once."""
_INSTEAD = "algorithm=gptq"
Plan = Mapping[str, Packing]
"""What is to be packed, by module path."""
Pieces = Sequence[Sequence[int]]
"""Token ids, all of one length."""
Rounding = Callable[[Plan], Mapping[str, Small]]
"""Packs matrices of the source, not necessarily all."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a method is given. It packs modules of the model; what it leaves is not its matter."""

    model: Any
    """mlx_lm's, its matrices not packed."""
    kind: str
    """Its `model_type`."""
    plan: Plan
    pieces: Pieces
    rounded: Rounding
    """The best that is known without learning."""
    options: Mapping[str, Value]
    progress: Progress
    width: int
    """Bits of a scale, as it will be stored."""

    @property
    def tokens(self) -> mx.array:
        """The pieces, (count, length)."""
        return mx.array(np.array(self.pieces, np.int32))

    @property
    def packing(self) -> Packing:
        """Of the layers."""
        return next(packing for path, packing in self.plan.items() if in_layers(path))


@dataclass(frozen=True, slots=True)
class Learned:
    packed: Mapping[str, Small]
    """By module path; scales and biases of the type that the matrix had."""
    plain: Mapping[str, NDArray[Any]]
    """Tensors that have other numbers than in the source, by name: norms, for AWQ."""
    notes: tuple[str, ...] = ()


def run(
    source: Path, wanted: Recipe, plan: Plan, pieces: Pieces, rounded: Rounding, options: Mapping[str, Value],
    progress: Progress,
) -> Learned:  # fmt: skip
    """Raises `UnsupportedModel`, `BadRequest`, `DoesNotFit`, and what `progress` raises.

    source: a folder of this backend's, not quantized.
    plan:   as the recipe has it for this folder.
    """
    _check_precision(wanted)
    _check_model(source, wanted, len(pieces[0]))
    installation.mlx_lm()
    from mlx_lm.utils import load_model

    model, config = load_model(source, lazy=True)
    _check_alike(model, wanted, plan)
    _check_memory(model, wanted)
    sources = dict(tree_flatten(model.parameters()))
    if on_cpu():
        model.set_dtype(mx.float32)
    model.eval()
    width = 8 * max(sources[f"{path}.weight"].dtype.size for path in plan)
    work = Work(model, config["model_type"], plan, pieces, rounded, options, progress, width)
    notes: list[str] = import_module(f"edgecore_mlx.{_FILES[wanted.algorithm]}").learn(work)
    return _learned(model, sources, notes)


def matrices(model: Any) -> dict[str, Any]:
    """Modules that can be packed, by path."""
    return {path: module for path, module in _leaves(model) if hasattr(module, "to_quantized")}


def in_layers(path: str) -> bool:
    return any(part.isdigit() for part in path.split("."))


def on_cpu() -> bool:
    return bool(mx.default_device() == mx.Device(mx.cpu))


def pack(model: Any, plan: Plan, known: Mapping[str, Small]) -> None:
    """Packs all of the plan: as is known, or else by what the numbers say."""
    made = []
    for path, module in matrices(model).items():
        if path in plan:
            packed = module.to_quantized(**plan[path].config())
            small = known.get(path) or _by_numbers(module.weight, plan[path])
            for name, array in small.parts():
                value = _mlx(array).reshape(packed[name].shape)
                packed[name] = value if name == "weight" else value.astype(module.weight.dtype)
            made.append((path, packed))
    model.update_modules(tree_unflatten(made))


@contextmanager
def hidden(model: Any, paths: Iterable[str]) -> Iterator[None]:
    """Within it mlx-lm does not see the matrices at these paths; the model computes as before."""
    there = [(path, module) for path, module in matrices(model).items() if path in set(paths)]
    model.update_modules(tree_unflatten([(path, _Hidden(module)) for path, module in there]))
    try:
        yield
    finally:
        model.update_modules(tree_unflatten(there))


class _Hidden(nn.Module):  # type: ignore[misc]
    """A matrix that computes and has no weights."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self._called, self.as_linear = module.__call__, getattr(module, "as_linear", None)

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self._called(x)
        return y


def _check_precision(wanted: Recipe) -> None:
    algorithm, bits = wanted.algorithm, BITS[wanted.algorithm]
    if wanted.mode != AFFINE or wanted.bits not in bits or (wanted.mixed and algorithm in _UNIFORM):
        what = wanted.mixed or (f"{wanted.bits} bits" if wanted.mode == AFFINE else wanted.mode)
        mixed = "" if algorithm in _UNIFORM else ", mixed recipes"
        raise BadRequest(f"{algorithm} does not make {what}", supported=", ".join(f"q{n}" for n in bits) + mixed)


def _check_model(source: Path, wanted: Recipe, length: int) -> None:
    """What mlx_lm learned from other answers would not be about the model."""
    decoder = folder_decoder(source)
    if decoder is None:
        return
    window, short = decoder.window, ""
    if decoder.family != "gemma3" or wanted.algorithm == "awq":  # mlx-lm's AWQ gives every layer the same mask
        short = f"calibration_length={window}, or " if 0 < window < length else ""
        decoder = decoder if decoder.family == "gemma3" else replace(decoder, window=0, windowed=())
    whys = list(elsewhere.computed_otherwise(decoder, folder.text_config(source).values, decoder.context_length))
    if short:
        whys.append(f"mlx_lm leaves out the window of {window} tokens, and the samples have {length}")
    if whys:
        supported = f"{short if len(whys) == 1 else ''}{_INSTEAD}"
        raise UnsupportedModel(f"{wanted.algorithm} of {source}: {whys[0]}", supported=supported)


def _check_alike(model: Any, wanted: Recipe, plan: Plan) -> None:
    columns = {path: module.weight.shape[-1] for path, module in matrices(model).items() if in_layers(path)}
    odd = [path for path in columns if plan.get(path) != wanted.packing]
    if odd and wanted.algorithm in _UNIFORM:
        sizes = [str(size) for size in GROUPS[AFFINE] if all(n % size == 0 for n in columns.values())]
        raise UnsupportedModel(
            f"{wanted.algorithm} packs all matrices of the layers alike, and groups of {wanted.group_size} do not "
            f"divide the rows of {odd[0]!r}, {columns[odd[0]]}",
            supported=f"group_size={' or '.join(sizes)}" if sizes else _INSTEAD,
        )


def _check_memory(model: Any, wanted: Recipe) -> None:
    size = 4 if on_cpu() else 2
    needed = _COPIES[wanted.algorithm] * size * sum(array.size for _, array in tree_flatten(model.parameters()))
    if wanted.algorithm == "mlx_gptq":
        needed += sum(4 * m.weight.shape[-1] ** 2 for path, m in matrices(model).items() if in_layers(path))
    memory.check_fits(needed, "cpu" if on_cpu() else "gpu", f"{wanted.algorithm} of the model")


def _leaves(model: Any) -> list[tuple[str, Any]]:
    return list(tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module))


def _by_numbers(weight: mx.array, packing: Packing) -> Small:
    rows = np.array(weight.astype(mx.float32)).reshape(-1, weight.shape[-1])
    return affine.rounded(rows, packing, "F32", MSE)


def _mlx(array: NDArray[Any]) -> mx.array:
    """mx.array takes bfloat16 for what it has no type for."""
    return mx.array(array if array.dtype in (np.uint32, np.float16, np.float32) else array.astype(np.float32))


def _learned(model: Any, sources: Mapping[str, mx.array], notes: list[str]) -> Learned:
    """What the model has now and the folder has not."""
    arrays: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    packed: dict[str, Small] = {}
    for path, module in _leaves(model):
        if "scales" in module:
            stored = sources[f"{path}.weight"].dtype
            weight, scales, biases = (arrays.pop(f"{path}.{name}") for name in ("weight", "scales", "biases"))
            packing = Packing(module.bits, module.group_size, module.mode)
            packed[path] = Small(np.array(weight), _stored(scales, stored), _stored(biases, stored), packing)
    plain = {
        name: _stored(array, sources[name].dtype)
        for name, array in arrays.items()
        if not mx.array_equal(array, sources[name]).item()
    }
    return Learned(packed, plain, tuple(notes))


def _stored(array: mx.array, dtype: mx.Dtype) -> NDArray[Any]:
    """Rounded to the type that the folder has; numpy has no bfloat16 of its own."""
    rounded = np.array(array.astype(dtype).astype(mx.float32))
    return rounded.astype({mx.float16: np.float16, mx.bfloat16: bfloat16}.get(dtype, np.float32))
