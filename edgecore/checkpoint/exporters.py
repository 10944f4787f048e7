"""Who else takes a model that is refused here: the ecosystem's own exporters and runtimes, by name, with the command
that makes them usable. Read when a model is refused, and only then.

What each takes stands in exporters.toml, derived from their sources by benchmarks/derive_exporters.py.
"""

from __future__ import annotations

import shlex
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edgecore.checkpoint.fields import Fields
from edgecore.contract.errors import UnsupportedModel


@dataclass(frozen=True, slots=True)
class Exporter:
    """One of them. A name in a list is one that its sources name: nothing was tried."""

    name: str
    version: str
    install: str
    """The command that makes it usable."""
    architectures: tuple[str, ...] = ()
    """Values of a config's `architectures`."""
    model_types: tuple[str, ...] = ()
    """Values of a config's `model_type`."""
    quantizations: tuple[str, ...] = ()
    """Values of `quantization_config.quant_method` whose weights it unpacks."""
    gguf_architectures: tuple[str, ...] = ()
    """Values of `general.architecture` that its runtime opens as they are."""

    def takes(self, model_type: str, architectures: tuple[str, ...], packing: str) -> bool:
        if packing and packing not in self.quantizations:
            return False
        return model_type in self.model_types or not set(architectures).isdisjoint(self.architectures)


@cache
def exporters() -> tuple[Exporter, ...]:
    """Those whose exporter edgecore installs itself first."""
    data: dict[str, list[dict[str, Any]]] = tomllib.loads(
        Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
    )
    return tuple(
        Exporter(
            entry["name"],
            entry["version"],
            entry["install"],
            tuple(entry.get("architectures", ())),
            tuple(entry.get("model_types", ())),
            tuple(entry.get("quantizations", ())),
            tuple(entry.get("gguf_architectures", ())),
        )
        for entry in data["exporters"]
    )


def may_take(command: str, refused: str) -> bool:
    """Whether the exporter that this command installs may take a model that was refused in these words: they name those
    whose sources say so, and of others nobody knows."""
    known = [exporter.name for exporter in exporters() if exporter.install == command]
    return not known or any(name in refused for name in known)


def advised(error: UnsupportedModel, config: Fields) -> UnsupportedModel:
    """The same refusal of a Hugging Face folder, with who would take the model as its config.json describes it."""
    packing = config.values.get("quantization_config")
    method = str(packing.get("quant_method") or "unknown") if isinstance(packing, dict) else ""
    names = named_architectures(config)
    found = [e for e in exporters() if e.takes(str(config.values.get("model_type")), names, method)]
    if not found:
        return UnsupportedModel(f"{error.what}; no exporter that is known here takes it", supported=error.supported)
    who = ", ".join(f"{e.name} ({e.version})" for e in found)
    kind = f"{names[0]} models" if names else "such models"
    return UnsupportedModel(
        f"{error.what}; {who} take{'s' if len(found) == 1 else ''} {kind}",
        supported=error.supported,
        hint=found[0].install,
    )


def advised_gguf(error: UnsupportedModel, file: Path, architecture: str) -> UnsupportedModel:
    """The same refusal of a GGUF file, which no exporter takes: but a runtime may open it as it is."""
    runs = any(architecture in e.gguf_architectures for e in exporters())
    return UnsupportedModel(
        f"{error.what}; {'llama.cpp runs it as it is' if runs else 'no runtime that is known here runs it'}",
        supported=error.supported,
        hint=f"edgecore run {shlex.quote(str(file))} --backend llamacpp" if runs else "",
    )


def named_architectures(config: Fields) -> tuple[str, ...]:
    """The config's `architectures`, as far as they are names."""
    value = config.values.get("architectures")
    names = value if isinstance(value, list) else []
    return tuple(name for name in names[:8] if isinstance(name, str) and len(name) <= 100)
