"""`edgecore backends`: which plugins are here, from their manifests and the last probe. No runtime, no numpy."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from edgecore import registry
from edgecore.cli import options as shared
from edgecore.cli.output import emit_json, note, table
from edgecore.verbs import probing, proving

if TYPE_CHECKING:
    from edgecore.registry import Entry


@click.command()
@click.argument("name", required=False)
@shared.as_json
def command(name: str | None, as_json: bool) -> None:
    """List every backend with its state, or NAME in full: devices, formats, precisions, options, claims."""
    if name:
        _one(name, registry.find(name), as_json)
        return
    entries = registry.discover().entries
    if as_json:
        emit_json([_facts(entry) for entry in entries])
        return
    if not entries:
        from edgecore.environments import install_command

        note("no backend is installed; `edgecore doctor` says which suits this machine")
        note(f"for example: {install_command('llamacpp')}")
        return
    rows = [(e.name, e.version, _runtime(e), e.state.value, *_probe(e.name)) for e in entries]
    click.echo(table(("backend", "version", "runtime", "state", "devices", "probed"), rows))
    for entry in entries:
        if entry.problem:
            note(f"{entry.name}: {entry.problem}" + (f"\n  try: {entry.hint}" if entry.hint else ""))
        elif entry.warning:
            note(f"{entry.name}: {entry.warning}")


def _runtime(entry: Entry) -> str:
    return f"{entry.runtime} {entry.runtime_version or 'missing'}" if entry.runtime else ""


def _probe(name: str) -> tuple[str, str]:
    found = probing.last(name)
    if not found:
        return "?", "never (edgecore doctor)"
    return ", ".join(d["name"] for d in found["devices"] if d["available"]) or "none", found["when"]


def _facts(entry: Entry) -> dict[str, Any]:
    manifest = entry.manifest
    return {
        "name": entry.name,
        "state": entry.state.value,
        "version": entry.version,
        "runtime": manifest.runtime.distribution if manifest else None,
        "runtime_version": entry.runtime_version,
        "origin": entry.origin,
        "problem": entry.problem,
        "hint": entry.hint,
        "devices": [d.name for d in manifest.devices] if manifest else [],
        "formats": [f.name for f in manifest.formats] if manifest else [],
        "precisions": [p.name for p in manifest.precisions] if manifest else [],
        "probe": probing.last(entry.name),
    }


def _one(named: str, entry: Entry, as_json: bool) -> None:
    manifest = entry.ready_manifest
    if as_json:
        from dataclasses import asdict

        claims = [{**asdict(s.claim), "state": s.state, "why": s.why} for s in proving.standings(entry)]
        emit_json({**_facts(entry), "manifest": asdict(manifest), "claims": claims})
        return
    click.echo(f"{manifest.title} ({entry.name} {entry.version}, {_runtime(entry)})\n{manifest.summary}\n")
    click.echo(table(("device", "about"), [(d.name, d.help) for d in manifest.devices]) + "\n")
    click.echo(table(("format", "task", "about"), [(f.name, f.task, f.help) for f in manifest.formats]) + "\n")
    rows = [
        (
            p.name,
            p.precision_class.value,
            f"{p.bits:g}",
            p.by,
            p.calibration,
            p.help or ("recommended" if p.recommended else ""),
        )
        for p in manifest.precisions
    ]
    click.echo(table(("precision", "class", "bits", "made by", "calibration", "about"), rows))
    for verb, options in manifest.options.items():
        described = [
            (
                f"-O {o.name}=",
                ", ".join(o.precisions) or o.task or "all",
                o.type,
                o.default,
                ", ".join(map(str, o.choices)),
                o.help,
            )
            for o in options
        ]
        click.echo("\n" + table((f"option of {verb}", "for", "type", "default", "choices", "about"), described))
    off = [c for c, on in manifest.capabilities.items() if not on]
    click.echo(f"\ncapabilities: {', '.join(c for c, on in manifest.capabilities.items() if on)}")
    if off:
        click.echo(f"declared absent: {', '.join(off)}")
    _claims(named, proving.standings(entry))


def _claims(named: str, standings: list[proving.Standing]) -> None:
    """Each claim with its state; claims that differ in nothing but the precision share a line."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for s in standings:
        c = s.claim
        lines.setdefault((c.task, c.family, c.format, c.device, s.state, s.why), []).append(c.precision)
    proven = sum(s.state == "proven" for s in standings)
    click.echo(f"\n{proven} of {len(standings)} claims are proven on this machine")
    rows = [(*key[:4], ", ".join(precisions), *key[4:]) for key, precisions in lines.items()]
    click.echo(table(("task", "family", "format", "device", "precision", "state", "found"), rows))
    if any(s.state in ("unproven", "stale") for s in standings):
        command = shlex.join(["edgecore", "conformance", "run", "--backend", named])
        click.echo(f"{command} turns claims into evidence on the device at hand")
