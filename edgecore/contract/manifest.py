"""The light half of a plugin: what it is and what it claims, as data that can be read without running it.

A plugin's top-level package contains `backend.toml`. Help, listing, inspect and plan read it with a TOML parser, also
from another environment, and import no plugin code. This module must stay as light: standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgecore.contract.errors import BadRequest
from edgecore.contract.options import OPTION_TYPES, Option
from edgecore.contract.precisions import Precision

CONTRACT_VERSION = (1, 0)
"""Same major loads, a newer minor loads with a warning, another major is listed as incompatible."""
MANIFEST_FILE = "backend.toml"
ENTRY_POINT_GROUP = "edgecore.backends"
TASKS = ("text", "tensor")
VERBS = ("convert", "quantize", "run", "benchmark", "compile")


@dataclass(frozen=True, slots=True)
class Device:
    """A compute unit that the backend can use."""

    name: str
    """What users select and the runtime knows it as: `cpu`, `gpu`, `npu`, `npu-emulator`."""
    systems: tuple[str, ...] = ()
    """`platform.system()` values it exists on; empty means any."""
    machines: tuple[str, ...] = ()
    """`platform.machine()` values it exists on; empty means any."""
    emulated: bool = False
    """Executes elsewhere what the name promises: never chosen unless named, its timings are never speed."""
    help: str = ""


@dataclass(frozen=True, slots=True)
class Format:
    """A file format that the backend opens, and perhaps makes."""

    name: str
    task: str
    """`text` or `tensor`."""
    suffixes: tuple[str, ...] = ()
    """File endings by which a native file is known."""
    marker: str = ""
    """A file whose presence makes a folder a native model of this format."""
    help: str = ""
    config_key: str = ""
    """A key of config.json that makes it one too, whether the marker is there or not."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The unit of what a backend promises: conformance turns each into evidence on the device at hand."""

    task: str
    family: str
    """A decoder family (`llama`) or, for tensor models, an operator set (`onnx-opset-24`)."""
    format: str
    precision: str
    device: str


@dataclass(frozen=True, slots=True)
class Runtime:
    """The library that does the work."""

    distribution: str
    """Its name on the package index; its installed version is read without importing it."""
    requires: str = ""
    """Version range that the plugin was written for, for people; the plugin's own metadata decides."""
    needs: str = ""
    """What installing it needs beside pip (`a C++ compiler`), in words."""


@dataclass(frozen=True, slots=True)
class Exporter:
    """The ecosystem's own converter, for what the neutral model does not cover."""

    name: str
    hooks: str
    """Module with `edgecore_convert`, imported in a worker of the exporter's environment."""
    requires: tuple[str, ...] = ()
    """Requirements of an environment of its own, pinned; none: it lives with the plugin."""
    help: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """`backend.toml`, checked."""

    name: str
    title: str
    summary: str
    contract: tuple[int, int]
    hooks: str
    """Module with the hook implementations, imported in a worker only."""
    distribution: str
    """The distribution that users install to get this backend."""
    runtime: Runtime
    devices: tuple[Device, ...]
    formats: tuple[Format, ...]
    precisions: tuple[Precision, ...]
    claims: tuple[Claim, ...]
    sources: tuple[str, ...]
    """What convert takes: `gguf`, `huggingface`, `onnx`."""
    capabilities: Mapping[str, bool]
    """`logits`, `native_generate`, `native_benchmark`, `deterministic`, `cancel_quantize`; absent means False."""
    options: Mapping[str, tuple[Option, ...]] = field(default_factory=dict)
    """By verb."""
    exporter: Exporter | None = None
    reference: bool = False
    """True for the oracle as a backend: never chosen unless named."""

    def can(self, capability: str) -> bool:
        return bool(self.capabilities.get(capability, False))

    def options_of(self, verb: str) -> tuple[Option, ...]:
        return tuple(self.options.get(verb, ()))

    def precisions_of(self, task: str | None, device: str | None = None) -> tuple[Precision, ...]:
        """Those that a task's models have on a device: all but what is claimed for others alone. None: of any.

        A device that no claim of the task names narrows nothing."""
        here = {claim.precision for claim in self._claims_of(task, device)}
        elsewhere = {claim.precision for claim in self.claims}
        return tuple(p for p in self.precisions if p.name in here or p.name not in elsewhere)

    def formats_of(self, task: str | None, precision: str | None = None, device: str | None = None) -> tuple[str, ...]:
        """Formats in which a task's models are made, in the manifest's order: claims name them; others it opens and no
        more. Of one precision and for one device where these are given: the first is what convert is asked for.

        A precision or a device that no claim of the task names narrows nothing; empty: none has both."""
        claims = self._claims_of(task, device)
        if any(c.precision == precision for c in self._claims_of(task)):
            claims = [c for c in claims if c.precision == precision]
        claimed = {c.format for c in claims}
        return tuple(f.name for f in self.formats if f.name in claimed)

    def _claims_of(self, task: str | None, device: str | None = None) -> list[Claim]:
        """The claims of a task; of those, the ones for a device where any is."""
        claims = [c for c in self.claims if task in (None, c.task)]
        return [c for c in claims if c.device == device] or claims

    def device(self, name: str) -> Device | None:
        return next((d for d in self.devices if d.name == name), None)

    def format(self, name: str) -> Format | None:
        return next((f for f in self.formats if f.name == name), None)


def parse(data: Mapping[str, Any], where: str) -> Manifest:
    """A manifest from parsed TOML. Raises `BadRequest` that names `where` and the field.

    Claims are written compactly, as lists, and stand for their product: `[[claims]]` with `task = "text"`,
    `families = ["llama"]`, `formats = ["gguf"]`, `precisions = ["f16", "q8_0"]`, `devices = ["cpu"]` is two claims.
    """
    reader = _Table(data, where)
    precisions = tuple(
        Precision(
            name=t.text("name").lower(),
            bits=t.number("bits"),
            by=t.text("by", "quantize"),
            calibration=t.text("calibration", "none"),
            recommended=t.flag("recommended"),
            overhead=t.number("overhead", 0.0),
            help=t.text("help", ""),
        )
        for t in reader.tables("precisions")
    )
    devices = tuple(
        Device(t.text("name"), t.texts("systems"), t.texts("machines"), t.flag("emulated"), t.text("help", ""))
        for t in reader.tables("devices")
    )
    formats = tuple(
        Format(
            t.text("name"),
            t.text("task"),
            t.texts("suffixes"),
            t.text("marker", ""),
            t.text("help", ""),
            t.text("config_key", ""),
        )
        for t in reader.tables("formats")
    )
    runtime = reader.table("runtime")
    manifest = Manifest(
        name=reader.text("name"),
        title=reader.text("title"),
        summary=reader.text("summary"),
        contract=contract_version(reader.text("contract"), where),
        hooks=reader.text("hooks"),
        distribution=reader.text("distribution"),
        runtime=Runtime(runtime.text("distribution"), runtime.text("requires", ""), runtime.text("needs", "")),
        devices=devices,
        formats=formats,
        precisions=precisions,
        claims=tuple(claim for t in reader.tables("claims") for claim in _claims(t)),
        sources=reader.texts("sources"),
        capabilities={k: bool(v) for k, v in reader.table("capabilities", {}).data.items()},
        options={verb: tuple(map(_option, t)) for verb, t in reader.options()},
        exporter=_exporter(reader.table("exporter")) if "exporter" in data else None,
        reference=reader.flag("reference"),
    )
    _check(manifest, reader)
    return manifest


def contract_version(text: str, where: str) -> tuple[int, int]:
    """`"1.0"` as (1, 0). Raises `BadRequest`."""
    major, _, minor = text.partition(".")
    if not (major.isdecimal() and minor.isdecimal()):
        raise BadRequest(f"{where}: contract = {text!r}", supported='"MAJOR.MINOR", like "1.0"')
    return int(major), int(minor)


def _claims(table: _Table) -> Iterator[Claim]:
    for family in table.texts("families"):
        for fmt in table.texts("formats"):
            for precision in table.texts("precisions"):
                for device in table.texts("devices"):
                    yield Claim(table.text("task"), family, fmt, precision, device)


def _option(table: _Table) -> Option:
    return Option(
        name=table.text("name"),
        type=table.choice("type", OPTION_TYPES),
        default=table.data.get("default"),
        choices=tuple(table.data.get("choices", ())),
        minimum=table.data.get("minimum"),
        maximum=table.data.get("maximum"),
        help=table.text("help", ""),
        task=table.choice("task", TASKS) if "task" in table.data else "",
        precisions=table.texts("precisions"),
    )


def _exporter(table: _Table) -> Exporter:
    return Exporter(table.text("name"), table.text("hooks"), table.texts("requires"), table.text("help", ""))


def _check(manifest: Manifest, reader: _Table) -> None:
    """Claims and defaults that name what the manifest does not declare are errors here, not surprises later."""
    known = {
        "format": {f.name for f in manifest.formats},
        "precision": {p.name for p in manifest.precisions},
        "device": {d.name for d in manifest.devices},
    }
    for claim in manifest.claims:
        for field_name, names in known.items():
            value = getattr(claim, field_name)
            if value not in names:
                raise reader.bad("claims", f"{field_name} {value!r} is not declared", ", ".join(sorted(names)))
    for option in (o for options in manifest.options.values() for o in options):
        if unknown := [name for name in option.precisions if name not in known["precision"]]:
            raise reader.bad(
                "options",
                f"{option.name}: precision {unknown[0]!r} is not declared",
                ", ".join(sorted(known["precision"])),
            )
    for precision in manifest.precisions:
        if precision.by not in ("convert", "quantize", "both"):
            raise reader.bad("precisions", f"{precision.name}: by = {precision.by!r}", "convert, quantize, both")
        if precision.calibration not in ("none", "optional", "required"):
            raise reader.bad(
                "precisions", f"{precision.name}: calibration = {precision.calibration!r}", "none, optional, required"
            )


class _Table:
    """Typed access to one TOML table; every failure names the file and the field."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data = data
        self.where = where

    def bad(self, key: str, why: str, supported: str = "") -> BadRequest:
        return BadRequest(f"{self.where}: {key}: {why}", supported=supported)

    def _get(self, key: str, kinds: type | tuple[type, ...], default: Any, what: str) -> Any:
        value = self.data.get(key, default)
        if value is None:
            raise self.bad(key, "is missing", what)
        if not isinstance(value, kinds):
            raise self.bad(key, f"is {value!r}", what)
        return value

    def text(self, key: str, default: str | None = None) -> str:
        return str(self._get(key, str, default, "a string"))

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        value = self.text(key)
        if value not in choices:
            raise self.bad(key, f"is {value!r}", ", ".join(choices))
        return value

    def number(self, key: str, default: float | None = None) -> float:
        return float(self._get(key, (int, float), default, "a number"))

    def flag(self, key: str) -> bool:
        return bool(self._get(key, bool, False, "true or false"))

    def texts(self, key: str) -> tuple[str, ...]:
        values = self._get(key, list, [], "a list of strings")
        if not all(isinstance(v, str) for v in values):
            raise self.bad(key, f"is {values!r}", "a list of strings")
        return tuple(values)

    def table(self, key: str, default: Mapping[str, Any] | None = None) -> _Table:
        return _Table(self._get(key, dict, default, "a table"), f"{self.where}: {key}")

    def tables(self, key: str) -> list[_Table]:
        values = self._get(key, list, [], "an array of tables")
        if not all(isinstance(v, dict) for v in values):
            raise self.bad(key, f"is {values!r}", "an array of tables")
        return [_Table(v, f"{self.where}: {key}[{i}]") for i, v in enumerate(values)]

    def options(self) -> Iterator[tuple[str, list[_Table]]]:
        by_verb = self.table("options", {})
        for verb in by_verb.data:
            if verb not in VERBS:
                raise by_verb.bad(verb, "is not a verb with options", ", ".join(VERBS))
            yield verb, by_verb.tables(verb)
