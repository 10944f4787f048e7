"""`edgecore cache`: what is stored, how much room it takes, and whether it is still what was sealed."""

from __future__ import annotations

from typing import Any

import click

from edgecore.cli import options as shared
from edgecore.cli.output import emit_json, note, size, table


@click.group()
def command() -> None:
    """List, remove and verify stored artifacts."""


@command.command("ls")
@shared.as_json
def list_(as_json: bool) -> None:
    """List stored artifacts with their size and verdict."""
    from edgecore.store import Store
    from edgecore.verbs.verifying import quality_of

    store = Store()
    rows: list[dict[str, Any]] = []
    for artifact in store.list():
        assessment = quality_of(store, artifact)
        source = str(artifact.chain[0].get("spec", "")) if artifact.chain else ""
        rows.append(
            {
                "id": artifact.id,
                "backend": artifact.backend,
                "precision": artifact.precision,
                "bytes": store.size(artifact),
                "verdict": assessment.verdict.value if assessment else "",
                "source": source,
            }
        )
    damaged = {identity: error.what for identity, error in store.unreadable().items()}
    if as_json:
        emit_json({"home": str(store.root), "artifacts": rows, "unreadable": damaged})
        return
    for identity, why in damaged.items():
        note(f"{identity}: {why}")
    if not rows:
        note(f"nothing is stored in {store.root}")
        return
    cells = [(r["id"], r["precision"], size(r["bytes"]), r["verdict"], r["source"]) for r in rows]
    click.echo(table(("id", "precision", "size", "verdict", "source"), cells, right=(2,)))
    click.echo(f"{len(rows)} artifacts, {size(sum(r['bytes'] for r in rows))} in {store.root}")


@command.command("rm")
@click.argument("ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Remove every artifact.")
@click.option("--sources", is_flag=True, help="Remove downloaded sources too; they can be fetched again.")
def remove(ids: tuple[str, ...], everything: bool, sources: bool) -> None:
    """Remove artifacts by id (or its unique beginning)."""
    from edgecore.contract.errors import BadRequest
    from edgecore.store import Store

    if not (ids or everything or sources):
        raise BadRequest("nothing named to remove", supported="ids, --all, --sources", hint="edgecore cache ls")
    store = Store()
    named = [*(a.id for a in store.list()), *store.unreadable()] if everything else map(store.identify, ids)
    for identity in named:
        store.remove(identity)
        note(f"removed {identity}")
    if sources:
        from edgecore.sources import clear

        note(f"removed {size(clear())} of downloaded sources")


@command.command()
@click.argument("ids", nargs=-1)
@shared.as_json
def verify(ids: tuple[str, ...], as_json: bool) -> int:
    """Recompute every digest. Exit code 1 where a sealed file is no longer what it was."""
    from edgecore.store import Store

    store = Store()
    damaged = {} if ids else {identity: [error.what] for identity, error in store.unreadable().items()}
    artifacts = [store.find(i) for i in ids] if ids else store.list()
    problems = {a.id: store.verify(a.id) for a in artifacts} | damaged
    if as_json:
        emit_json(problems)
    else:
        for identity, found in problems.items():
            click.echo(f"{identity}: {'; '.join(found) or 'good'}")
        note(f"{sum(not p for p in problems.values())} of {len(problems)} artifacts are as they were sealed")
    return 1 if any(problems.values()) else 0
