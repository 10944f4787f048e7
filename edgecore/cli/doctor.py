"""`edgecore doctor`: this machine, every plugin probed afresh, and what to install."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgecore.cli import options as shared
from edgecore.cli.output import emit_json, note, size, table

if TYPE_CHECKING:
    from edgecore.verbs.diagnosing import Diagnosis


@click.command()
@shared.as_json
def command(as_json: bool) -> int:
    """Say what this machine is, probe every plugin afresh, and name what to install. Exit code 3: no usable backend."""
    from edgecore.verbs.diagnosing import diagnose

    found = diagnose()
    if as_json:
        emit_json(_facts(found))
    else:
        _show(found)
    return 0 if found.usable else 3


def _show(found: Diagnosis) -> None:
    machine = found.machine
    click.echo(f"machine   {machine.chip or 'unknown processor'}, {machine.system} {machine.architecture}")
    click.echo(
        f"          {machine.threads} of {machine.cpus} CPUs usable, "
        f"{size(machine.memory_available)} of {size(machine.memory)} memory free"
    )
    click.echo(f"profile   {f'{found.profile.name}: {found.profile.title}' if found.profile else 'none matches'}\n")
    rows = []
    for check in found.checks:
        devices = [
            f"{d['name']}: {d['description']}" if d["available"] else f"no {d['name']}: {d['reason']}"
            for d in (check.probe or {"devices": []})["devices"]
        ]
        rows += [(check.entry.name, check.entry.version, line) for line in devices or [check.problem]]
    if rows:
        click.echo(table(("backend", "version", "finding"), rows) + "\n")
    for check in found.checks:
        if check.hint:
            click.echo(f"{check.entry.name}: try: {check.hint}")
    for advice in found.advice:
        click.echo(f"this machine wants {advice.backend}: {advice.why}\n  {advice.command}")
    if found.usable and not found.advice:
        note("everything that suits this machine is installed and answers")


def _facts(found: Diagnosis) -> dict[str, object]:
    return {
        "machine": found.machine.to_dict(),
        "profile": found.profile.name if found.profile else None,
        "backends": [
            {
                "name": c.entry.name,
                "state": c.entry.state.value,
                "probe": c.probe,
                "problem": c.problem,
                "hint": c.hint,
            }
            for c in found.checks
        ],
        "advice": [{"backend": a.backend, "why": a.why, "command": a.command} for a in found.advice],
    }
