"""What a backend made of a source: files listed by role, sealed, with the chain that led to them.

These classes are data only. `edgecore.store` writes, seals and reads them; a plugin receives an `Artifact` to open
or to quantize, and answers convert and quantize with `Made`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecore.contract.options import Value

ARTIFACT_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class PayloadFile:
    """One file of an artifact."""

    path: str
    """Relative to the artifact's folder, with forward slashes."""
    role: str
    """`model`, `weights`, `tokenizer`, `config` or `other`. One `model` an artifact: what the runtime opens."""
    size: int = 0
    """Bytes; filled in by the store."""
    sha256: str = ""
    """Hex digest; filled in by the store. Empty for native files, which are not sealed."""


@dataclass(frozen=True, slots=True)
class Fallback:
    """One tensor that did not get the asked precision, and why."""

    tensor: str
    got: str
    """The type it has instead, in the runtime's own name."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Weights:
    """Size of the weights, measured in the finished file."""

    bits_per_weight: float
    """Over all tensors: 8 x bytes / elements."""
    eligible_bits_per_weight: float
    """Over the tensors that the precision means to change (the matrices), measured."""
    parameters: int
    """Elements over all tensors."""
    fallbacks: tuple[Fallback, ...] = ()
    """Every eligible tensor whose type is not one that the precision plans for."""


@dataclass(frozen=True, slots=True)
class Made:
    """The answer of convert, quantize and compile: what was written under `out`, and what was done."""

    files: tuple[PayloadFile, ...]
    weights: Weights | None = None
    """None where the runtime's format does not tell."""
    notes: tuple[str, ...] = ()
    """What a person should know: a lossy step, a tensor that was left alone."""
    requires: Mapping[str, str] = field(default_factory=dict)
    """What a machine needs to run it (`soc`, `sdk`, `driver`); empty where any will do."""
    tools: Mapping[str, str] = field(default_factory=dict)
    """Versions of what made it, beside the plugin's and the runtime's own."""
    format: str = ""
    """Of the manifest's formats, by compile where it is not the artifact's own; convert was told its."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A backend's model on disk. `id` is empty for a native file or folder, which carries no evidence."""

    path: Path
    """The artifact's folder; for a native file or folder, the thing itself."""
    backend: str
    task: str
    """`text` or `tensor`."""
    format: str
    """As in the manifest (`gguf`, `openvino-ir`, ...)."""
    precision: str
    files: tuple[PayloadFile, ...]
    id: str = ""
    family: str = ""
    """Decoder family of a text model (`llama`), empty otherwise."""
    context_length: int = 0
    """Trained context in tokens; 0 where not known."""
    weights: Weights | None = None
    requires: Mapping[str, str] = field(default_factory=dict)
    chain: tuple[Mapping[str, Any], ...] = ()
    """From the source to here: one mapping a step, with `verb`, `source` or `from`, `digest`, `options`, `tools`."""
    notes: tuple[str, ...] = ()

    @property
    def native(self) -> bool:
        """True for files that people already had: run where they lie, never sealed, no evidence."""
        return not self.id

    @property
    def model(self) -> Path:
        """What the runtime opens: the file of role `model`."""
        for file in self.files:
            if file.role == "model":
                return self.path if self.native and self.path.is_file() else self.path / file.path
        return self.path

    def option(self, name: str) -> Value | None:
        """The value of a backend option of the last step, None where it had none."""
        options = self.chain[-1].get("options", {}) if self.chain else {}
        value: Value | None = options.get(name)
        return value
