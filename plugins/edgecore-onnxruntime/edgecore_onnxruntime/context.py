"""A model compiled ahead of time: an ONNX file whose one node holds what QNN compiled, or names the file that does.

It runs on the chip that it was compiled for. QNN's emulator runs any chip's without a word, and what a chip does with
another's Qualcomm calls indeterminate; so what a binary says of itself is read here, and compared with what is asked.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from edgecore.contract import CorruptModel, DeviceUnavailable, ModelNotFound
from edgecore_onnxruntime.chips import CHIPS, DEVICES, EMULATOR, NPU, chip_here

OPERATOR = "EPContext"
LONGEST = 255
"""Characters of a file's name that are believed."""
DIGEST = "edgecore.sha256"
"""A property of the ONNX file: the digest of what QNN compiled, which QNN itself does not check."""
_COMPATIBILITY = "ep_compatibility_info.QNNExecutionProvider"
"""A property by QNN's provider: `v2:6:2.51.0:5.51.0:0:60:0:0`, the SDK's version third, the chip's number sixth."""
_CHIP = re.compile(rb"soc_type=(\w+);arch=(\d{1,9});")
_MEMORY = re.compile(rb"vtcm_size=(\d{1,18});")
_GRAPH = re.compile(rb"PICKLE/\d+/")
"""What QNN 2.51 writes into a binary, in plain text."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a model was compiled for, by its own words; empty or zero where it does not say."""

    binary: Path | None
    """The file beside; None where it is inside the ONNX file."""
    chip: str
    """By name, `SM8750`."""
    hexagon: int
    """The version of its Hexagon, 79."""
    vtcm_mb: int
    sdk: tuple[int, ...]
    """Version of QNN, (2, 51, 0)."""
    graphs: int
    """More than one share their weights."""
    digest: str
    """SHA-256 of what QNN compiled."""

    @property
    def told(self) -> str:
        """For an error."""
        known = [self.chip or "an unknown chip", f"Hexagon v{self.hexagon}" if self.hexagon else ""]
        known.append(f"QNN {_dotted(self.sdk)}" if self.sdk else "")
        return ", ".join(filter(None, known))


def read(model: onnx.ModelProto, path: Path) -> Context | None:
    """Of a model in `path`; None for one that is not compiled.

    Raises `ModelNotFound` where the binary beside is missing; `CorruptModel` where it is outside the folder, is empty
    or is not what it was.
    """
    nodes = [node for node in model.graph.node if node.op_type == OPERATOR]
    if not nodes:
        return None
    properties = {entry.key: entry.value for entry in model.metadata_props}
    said = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in nodes[0].attribute}
    binary = None if said.get("embed_mode", 1) else _beside(path, said)
    with _mapped(binary, said) as data:
        if not len(data):
            raise CorruptModel(f"{binary or path}: holds no compiled model")
        digest = hashlib.sha256(data).hexdigest()
        if properties.get(DIGEST, digest) != digest:
            raise CorruptModel(f"{binary or path}: is damaged: its digest is not the one in {path.name}")
        chip, hexagon = _found(_CHIP, data) or ("", "0")
        (memory,) = _found(_MEMORY, data) or ("0",)
        graphs = len(set(_GRAPH.findall(data)))
    fields = properties.get(_COMPATIBILITY, "").split(":")
    number = int(fields[5]) if len(fields) > 5 and re.fullmatch("[0-9]{1,9}", fields[5]) else 0
    named = next((name for name, known in CHIPS.items() if known == number), "")
    return Context(
        binary,
        chip or named,
        int(hexagon),
        int(memory) >> 20,
        _version(_text(said.get("ep_sdk_version", b"")) or (fields[2] if len(fields) > 2 else "")),
        graphs,
        digest,
    )


def sealed(path: Path) -> tuple[onnx.ModelProto, Context | None]:
    """A model that was just compiled, with the digest of what QNN made written into it. Raises as `read`."""
    model = onnx.load(path, load_external_data=False)
    if found := read(model, path):
        model.metadata_props.add(key=DIGEST, value=found.digest)
        onnx.save(model, path)
    return model, found


def check(context: Context, path: Path, device: str, asked: str, sdk: str) -> None:
    """Raises `DeviceUnavailable` for another chip than the model was compiled for, or an older QNN.

    device: `npu` or `npu-emulator`.
    asked:  the chip by name that the emulator is to play, or that is said to be here; empty where nobody says.
    sdk:    the version of QNN that is here. A newer one loads what an older one compiled.
    """
    here, ours = asked or (chip_here() if device == NPU else ""), _version(sdk)
    again = "edgecore build MODEL --backend onnxruntime --profile NAME"
    if context.chip and here and context.chip != here:
        raise DeviceUnavailable(
            f"{path.name} was compiled for {context.told}, and this is {here}",
            supported=f"a model compiled for {here}",
            hint=again,
        )
    if context.sdk[:2] > ours[:2]:
        raise DeviceUnavailable(
            f"{path.name} was compiled by QNN {_dotted(context.sdk)}, and QNN {_dotted(ours)} is here",
            supported=f"a model compiled by QNN {_dotted(ours)} or before, or a newer onnxruntime-qnn",
            hint=again,
        )
    if context.graphs > 1 and device == EMULATOR:
        raise DeviceUnavailable(
            f"{path.name} was compiled with weights that {context.graphs} graphs share, which the emulator cannot load",
            supported="the chip itself; a model compiled without -O share_weights=true",
            hint=again,
        )


def elsewhere(path: Path, device: str) -> DeviceUnavailable:
    """The error for a compiled model on a device that is no NPU."""
    return DeviceUnavailable(
        f"{path.name} was compiled for an NPU, and {device} was asked for",
        supported=", ".join(DEVICES),
        hint=f"--device {NPU}",
    )


def _beside(path: Path, said: Mapping[str, Any]) -> Path:
    name = _text(said.get("ep_cache_context", b""))
    folder = path.parent.resolve()
    file = (folder / name).resolve() if name and "\0" not in name and len(name) <= LONGEST else folder
    if file == folder or not file.is_relative_to(folder):
        raise CorruptModel(
            f"{path}: names a compiled model outside its folder: {name[:80]!r}", supported="a file beside it"
        )
    if not file.is_file():
        raise ModelNotFound(
            f"{file} does not exist", supported=f"the file that {path.name} was compiled with, beside it"
        )
    return file


@contextmanager
def _mapped(binary: Path | None, said: Mapping[str, Any]) -> Iterator[Any]:
    if binary is None:
        yield said.get("ep_cache_context", b"")
        return
    if not binary.stat().st_size:
        yield b""
        return
    with binary.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _found(pattern: re.Pattern[bytes], data: Any) -> tuple[str, ...]:
    found = pattern.search(data)
    return tuple(part.decode() for part in found.groups()) if found else ()


def _version(text: str) -> tuple[int, ...]:
    found = re.match(r"v?(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?", text)
    return tuple(int(part) for part in found.groups("0")) if found else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
