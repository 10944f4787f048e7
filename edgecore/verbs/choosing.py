"""What a request means for one backend, before anything is made: precision, format, options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from edgecore.contract.errors import BadRequest, UnsupportedPrecision
from edgecore.contract.manifest import Manifest
from edgecore.contract.options import Value, resolve
from edgecore.contract.precisions import Precision, PrecisionClass, select
from edgecore.registry import Entry

CONVERTED_CLASSES = (PrecisionClass.HALF, PrecisionClass.FULL)
"""What convert makes when nothing is asked for, and what build quantizes from."""
DEFAULT_CLASSES = (PrecisionClass.MEDIUM, *CONVERTED_CLASSES)
"""What build makes of a text model when nothing is asked for: 8 bits a weight lose next to nothing on any. A tensor
model gets what convert makes, because nothing here compares those with their source yet."""


def made_format(
    manifest: Manifest, task: str | None, precision: Precision, asked: str | None, device: str | None
) -> str:
    """What convert writes for a precision: the format asked for, else the first that claims it on the device asked for,
    or at all. Raises `BadRequest` for a format that the backend does not make of it."""
    formats = manifest.formats_of(task)
    fitting = manifest.formats_of(task, precision.name, device) or manifest.formats_of(task, precision.name)
    if asked and asked not in formats:
        raise BadRequest(f"backend {manifest.name!r} does not write {asked!r}", supported=", ".join(formats))
    if asked and asked not in fitting:
        raise BadRequest(f"{precision.name} is not made as {asked}", supported=", ".join(fitting))
    return asked or fitting[0]


def default_precision(entry: Entry, task: str | None, device: str | None = None) -> str:
    """What is made when nothing is asked for."""
    return first_precision(entry, task, CONVERTED_CLASSES if task == "tensor" else DEFAULT_CLASSES, device)


def first_precision(
    entry: Entry,
    task: str | None,
    classes: Iterable[PrecisionClass],
    device: str | None = None,
    format: str | None = None,
) -> str:
    """The first of the classes that the backend has for the task, device and format, else its first precision."""
    declared = declared_precisions(entry.ready_manifest, task, device, format)
    return next((c.value for c in classes if any(p.precision_class is c for p in declared)), declared[0].name)


def declared_precisions(
    manifest: Manifest, task: str | None, device: str | None, format: str | None
) -> tuple[Precision, ...]:
    """Precisions of a task on a device; of those, the ones that are claimed in a format where any is."""
    found = manifest.precisions_of(task, device)
    claimed = {claim.precision for claim in manifest.claims if claim.format == format}
    return tuple(p for p in found if p.name in claimed) or found


def selected(entry: Entry, asked: str, task: str | None, device: str | None = None) -> Precision:
    """The precision of this name or class; of a class the first that is for the device, where one is."""
    manifest = entry.ready_manifest
    with suppress(UnsupportedPrecision):
        return select(manifest.precisions_of(task, device), asked, entry.name, task)
    return select(manifest.precisions_of(task), asked, entry.name, task)


def check_device(manifest: Manifest, precision: Precision, task: str | None, device: str) -> None:
    """Raises `UnsupportedPrecision` where nothing that is made for the device has it."""
    if not manifest.formats_of(task, precision.name, device):
        raise UnsupportedPrecision(
            f"{precision.name} is not for {device}",
            supported=", ".join(p.name for p in manifest.precisions_of(task, device)),
        )


def check_calibration(
    entry: Entry, precision: Precision, calibration: Path | None, task: str | None, device: str | None = None
) -> None:
    """Refuse a precision that needs calibration data, and data that is not there, before anything is converted."""
    if calibration is not None:
        if not calibration.exists():
            raise BadRequest(
                f"calibration data {calibration} does not exist",
                supported="a UTF-8 text file (text models) or a folder of .npz files (tensor models)",
            )
    elif precision.calibration == "required":
        raise UnsupportedPrecision(
            f"{precision.name} needs calibration data and none was given",
            supported=", ".join(
                p.name for p in entry.ready_manifest.precisions_of(task, device) if p.calibration != "required"
            ),
            hint=f"the same command with --calibration {'FOLDER' if task == 'tensor' else 'FILE.txt'}",
        )


def options_by_verb(
    entry: Entry, given: Mapping[str, Value], verbs: tuple[str, ...], task: str | None, precision: Precision
) -> dict[str, dict[str, Value]]:
    """Options sorted to the verbs that declare them for the task and the precision. A key that none declares is
    refused, naming what exists."""
    manifest, name = entry.ready_manifest, entry.name
    known = {verb: {o.name for o in manifest.options_of(verb)} for verb in verbs}
    if set(given) - set().union(*known.values()):
        every = [o for verb in verbs for o in manifest.options_of(verb)]
        resolve(every, given, " and ".join(verbs), name, task, precision.name)
    found = {}
    for verb, names in known.items():
        own = {k: v for k, v in given.items() if k in names}
        found[verb] = resolve(manifest.options_of(verb), own, verb, name, task, precision.name)
    return found
