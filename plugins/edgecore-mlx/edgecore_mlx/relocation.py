"""A function on another device than the one it was exported on. Each operator's device stands in its file, and MLX runs
it there whatever else was asked for, or fails where there is none."""

from __future__ import annotations

import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from edgecore.contract import DoesNotFit, Placement, UnsupportedModel
from edgecore_mlx.mlxfn import DEVICES, Functions, Operator

GPU_ALONE = frozenset("CustomKernel LayerNorm LayerNormVJP RMSNorm RMSNormVJP RoPE ScaledDotProductAttention".split())
CPU_ALONE = frozenset("Cholesky Eig Eigh Inverse QRF SVD".split())
"""Operators that MLX 0.32 has kernels for on one kind of device."""


def moved(name: str, file: Functions, device: str) -> Functions:
    """The file as it computes on a device. What was exported in part for a GPU stays there in that part.

    Raises `UnsupportedModel` for an operator that MLX does not compute there.
    """
    if device == "gpu" and any(operator.device == "gpu" for operator in file.operators):
        return file
    for operator in file.operators:
        if device == "cpu" and operator.name in GPU_ALONE:
            raise UnsupportedModel(
                f"{name}: was exported on a GPU, and MLX computes its {operator.name} there alone",
                supported="gpu, or a function exported with mx.set_default_device(mx.cpu)",
                hint="--device gpu",
            )
        if device == "gpu" and operator.double:
            raise UnsupportedModel(
                f"{name}: computes in float64, which MLX does on a CPU alone",
                supported="cpu, or a function exported in float32",
                hint="--device cpu",
            )
    stays = CPU_ALONE if device == "gpu" else ()
    return replace(file, operators=tuple(o if o.name in stays else replace(o, device=device) for o in file.operators))


@contextmanager
def written(path: Path, told: Functions, wanted: Functions) -> Iterator[Path]:
    """The file itself where it says what is wanted, else a copy that does, which is gone afterwards: MLX keeps what it
    opened."""
    changed = [new for old, new in zip(told.operators, wanted.operators, strict=True) if old.device != new.device]
    if not changed:
        yield path
        return
    try:
        with tempfile.TemporaryDirectory(prefix="edgecore-") as folder:
            copy = Path(folder, "moved.mlxfn")
            shutil.copyfile(path, copy)
            with copy.open("r+b") as file:
                for operator in changed:
                    file.seek(operator.at)
                    file.write(struct.pack("<i", DEVICES.index(operator.device)))
            yield copy
    except OSError as error:
        raise DoesNotFit(
            f"{path.name}: no copy could be made to change the device: {error.strerror or error}",
            supported=f"{path.stat().st_size / 2**30:.1f} GiB free in {tempfile.gettempdir()}",
            hint="TMPDIR=FOLDER, on a larger disk",
        ) from None


def shared(seen: Placement, operators: Sequence[Operator]) -> Placement:
    """What was seen of a function on one device, and by the file's account on which each of its operators is: MLX keeps
    to that. Where nobody knows, the file's account is a setting like any other."""
    count = Counter(operator.device for operator in operators)
    if not seen.operators or not count:
        return seen
    words = ", ".join(f"{number} operators on {device}" for device, number in count.most_common())
    shares = {device: number / len(operators) for device, number in count.items()}
    return replace(seen, operators=shares, detail=f"streams of the function: {words}; {seen.detail}")
