"""The truthful quantizer on two devices: a CPU, and an NPU that is emulated, each with a format and a precision of its
own. A model for the NPU has a fixed context, which static.json says, as one compiled for a real one would have.
"""

import json
import mmap
from dataclasses import replace
from functools import cache
from pathlib import Path

from edgecore.checkpoint import open_checkpoint
from edgecore.contract import (
    CorruptModel,
    DeviceUnavailable,
    DoesNotFit,
    PayloadFile,
    Placement,
    PlacementSource,
    ProbedDevice,
    UnsupportedModel,
    UnsupportedPrecision,
    hookimpl,
)
from edgecore_mutant import quantizer
from edgecore_mutant.quantizer import edgecore_weights
from edgecore_reference.text import OracleSession

__all__ = [
    "EmulatedSession",
    "edgecore_convert",
    "edgecore_probe",
    "edgecore_quantize",
    "edgecore_run",
    "edgecore_weights",
    "fixed_context",
    "load_emulator",
]
CPU, NPU = "cpu", "npu-emulator"
MADE_OF = {"rounded": "q4_0", "static": "q8_0"}
"""What is quantized from each format."""
FIXED = "static.json"


@hookimpl
def edgecore_probe():
    found = quantizer.edgecore_probe()
    return replace(found, devices=(*found.devices, ProbedDevice(NPU, True, "an NPU of nobody's, emulated by numpy")))


@hookimpl
def edgecore_convert(source, out, format, precision, options, limits, progress):
    if format not in MADE_OF:
        raise UnsupportedModel(f"format {format!r}", supported=", ".join(MADE_OF))
    made = quantizer.edgecore_convert(source, out, "rounded", precision, options, limits, progress)
    if format == "rounded":
        return made
    with open_checkpoint(out) as model:
        context = limits.max_context or model.decoder.context_length
    (out / FIXED).write_text(json.dumps({"context": context}))
    return replace(made, files=(*made.files, PayloadFile(FIXED, "config")))


@hookimpl
def edgecore_quantize(artifact, out, precision, calibration, options, progress):
    if precision != MADE_OF[artifact.format]:
        raise UnsupportedPrecision(
            f"{precision!r} is not made of {artifact.format}", supported=MADE_OF[artifact.format]
        )
    return quantizer.edgecore_quantize(artifact, out, precision, calibration, options, progress)


@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    if device not in (CPU, NPU):
        raise DeviceUnavailable(f"there is no device {device!r}", supported=f"{CPU}, {NPU}")
    if (artifact.format == "static") is not (device == NPU):
        raise UnsupportedModel(f"format {artifact.format!r} does not run on {device}", supported="the other device")
    if device == CPU:
        return quantizer.edgecore_run(artifact, device, context_length, threads, options)
    fixed = fixed_context(artifact.path / FIXED)
    if context_length is not None and context_length > fixed:
        raise DoesNotFit(f"a context of {context_length} tokens", supported=f"up to {fixed}: convert anew for more")
    load_emulator()
    length = context_length or fixed
    return EmulatedSession(
        quantizer.opened(artifact.path), context_length=length, threads=threads, resident=True, chunk=64
    )


def fixed_context(file):
    try:
        return int(json.loads(file.read_text())["context"])
    except (OSError, ValueError, KeyError) as error:
        raise CorruptModel(f"{file}: {error}") from None


@cache
def load_emulator():
    """A file of an emulator's name is mapped from now on: what an observer outside sees of a library."""
    with Path(__file__).with_name("libQnnHtp.so").open("rb") as library:
        return mmap.mmap(library.fileno(), 0, access=mmap.ACCESS_READ)


class EmulatedSession(OracleSession):
    @property
    def placement(self):
        return Placement(PlacementSource.RUNTIME_ASSIGNMENT, operators={NPU: 1.0}, detail="all nodes are the NPU's")

    @property
    def conditions(self):
        return {**super().conditions, "device": NPU}
