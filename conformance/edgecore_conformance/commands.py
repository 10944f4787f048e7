"""`edgecore conformance`: run, verify, diff, list. Imported when one of them is called, never for help of others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgecore.cli.output import emit_json, note, table

if TYPE_CHECKING:
    from edgecore_conformance.compare import Change
    from edgecore_conformance.rows import Row

FOLDER = click.Path(path_type=Path, file_okay=False)
BUNDLE = click.Path(path_type=Path, file_okay=False)
as_json_option = click.option("--json", "as_json", is_flag=True, help="JSON on standard output, nothing else.")


@click.group()
def group() -> None:
    """Check what a backend claims on the device at hand, and keep evidence that others can verify."""


@group.command()
@click.option("--backend", required=True, help="Name of a backend, or folder of a plugin under development.")
@click.option("--device", default="", help="A device of the backend; its first by default.")
@click.option("--level", type=click.Choice(["quick", "full"]), default="quick", show_default=True)
@click.option("--out", type=FOLDER, help="Keep the bundle in this new folder; without it only the summary remains.")
@click.option("-k", "expression", default="", metavar="EXPR", help='Only rows that match: "text and not stop".')
@click.option("--resume", is_flag=True, help="Go on with the bundle in --out: finished rows are kept.")
@click.option("--challenge", type=int, default=0, metavar="SEED", help="Draw every input from this seed.")
@click.option("--no-expectations", is_flag=True, help="Ignore the plugin's conformance.toml.")
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="The real model of level full, a path.")
@as_json_option
def run(
    backend: str,
    device: str,
    level: str,
    out: Path | None,
    expression: str,
    resume: bool,
    challenge: int,
    no_expectations: bool,
    model: Path | None,
    as_json: bool,
) -> int:
    """Run the checks of a backend on a device. Exit code 0: every row is good; 1: one is not; 2: a bad request; 3: not
    available here."""
    from edgecore.contract.errors import BadRequest
    from edgecore_conformance.door import drive, exit_code
    from edgecore_conformance.run import Run

    if resume and out is None:
        raise BadRequest("--resume goes on with a bundle, and there is none", hint="the same with --out DIR")
    made = Run(
        backend,
        device,
        level,
        out=out,
        resume=resume,
        seed=challenge,
        model=model,
        expectations=not no_expectations,
    )
    if not as_json:
        made.on_row = _row_line
    went = drive(made, expression)
    report = made.report
    if report is None:
        raise BadRequest("the run ended before a row was selected")
    if as_json:
        emit_json(
            {n: v for n, v in report.items() if n not in ("rows", "checks")} | {"bundle": str(out) if out else None}
        )
    else:
        _summary(report, out)
    if not went:
        raise KeyboardInterrupt
    return exit_code(made)


def _row_line(row: Row) -> None:
    first = row.message.partition("\n")[0]
    told = f": {first}" if first and not row.outcome.proves else ""
    note(f"{row.outcome.value.replace('_', ' '):>14}  {row.row}  {row.seconds:.1f} s{told[:300]}")


def _summary(report: dict[str, Any], out: Path | None) -> None:
    """By group, with numerators and denominators; then the rows that are not good, the claims, the place."""
    rows = [
        (g["title"], f"{g['good']}/{g['rows']}", g["of"], g["outcome"].replace("_", " "), _counts(g["outcomes"]))
        for g in report["groups"].values()
    ]
    click.echo(table(("group", "good", "in all", "worst", "outcomes"), rows, right=(1, 2)))
    claims = report["claims"]
    states = ", ".join(f"{claims[s]} {s}" for s in ("proven", "emulated", "unproven", "refuted") if claims[s])
    click.echo(f"\nrows: {report['rows_selected']} of {report['rows_of_level']}: {_counts(report['outcomes'])}")
    device = report["header"]["device"]["name"]
    click.echo(f"claims about {device}: {claims['proven']}/{claims['claimed']} proven ({states or 'none'})")
    reasons: dict[str, int] = {}
    for claim in claims["of"]:
        if claim["device"] == device and claim["because"]:
            words = f"{claim['state']}: {claim['because'][0]}"
            reasons[words] = reasons.get(words, 0) + 1
    for words, number in sorted(reasons.items(), key=lambda item: -item[1])[:8]:
        click.echo(f"  {number} {words}")
    if report["exceptions"]:
        click.echo(f"exceptions: {len(report['exceptions'])} rows lean on the plugin's conformance.toml")
    if out is not None:
        click.echo(f"bundle: {out} (index.html shows it; edgecore conformance verify {out})")
    else:
        click.echo("no bundle was kept; --out DIR keeps it")


def _counts(outcomes: dict[str, int]) -> str:
    return ", ".join(f"{n} {o.replace('_', ' ')}" for o, n in outcomes.items()) or "none"


@group.command()
@click.argument("bundle", type=BUNDLE)
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="The real model of level full, a path.")
@as_json_option
def verify(bundle: Path, model: Path | None, as_json: bool) -> int:
    """Say whether a BUNDLE is consistent or contradicts itself, and list what cannot be known from it. Offline."""
    from edgecore_conformance.verify import CANNOT_KNOW
    from edgecore_conformance.verify import verify as verified

    found = verified(bundle, model)
    if as_json:
        emit_json(found.to_dict())
        return 0 if found.consistent else 1
    for contradiction in found.contradictions:
        click.echo(f"contradiction: {_plain(contradiction)}")
    told = f"{found.recomputed} of {found.rows} rows judged anew from their raw outputs"
    click.echo(f"{'consistent' if found.consistent else 'not consistent'}: {told}")
    click.echo("what this does not tell:")
    for unknown in (*found.unknown, *CANNOT_KNOW):
        click.echo(f"  {_plain(unknown)}")
    return 0 if found.consistent else 1


def _plain(text: str) -> str:
    """One line, without signs that move a terminal's cursor: a bundle of a stranger says no word of ours."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@group.command()
@click.argument("before", type=BUNDLE)
@click.argument("after", type=BUNDLE)
@as_json_option
def diff(before: Path, after: Path, as_json: bool) -> int:
    """Show what changed from bundle BEFORE to bundle AFTER. Exit code 1 where a row or a claim got worse."""
    from edgecore_conformance.compare import compare

    found = compare(before, after)
    if as_json:
        emit_json(found.to_dict())
        return int(found.worse)
    for title, changes in (
        ("condition", found.conditions),
        ("row", found.rows),
        ("figure", found.figures),
        ("claim", found.claims),
    ):
        if changes:
            click.echo(table((title, "before", "after", ""), [_change(c) for c in changes]) + "\n")
    if not (found.conditions or found.rows or found.figures or found.claims):
        click.echo("nothing changed")
    return int(found.worse)


def _change(change: Change) -> tuple[str, str, str, str]:
    before, after = (_plain(_short(v)) for v in (change.before, change.after))
    return _plain(change.what), before, after, "worse" if change.worse else ""


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)[:60]


@group.command("list")
@as_json_option
def list_checks(as_json: bool) -> None:
    """List every check with what it is about; docs/checks.md has a page on each."""
    from edgecore_conformance.check import GROUPS, all_checks

    checks = all_checks().values()
    if as_json:
        emit_json([{"name": c.name(), "group": c.group(), "levels": c.levels, "summary": c.summary()} for c in checks])
        return
    for name, title in GROUPS.items():
        rows = [
            (c.name(), c.summary() + ("" if "quick" in c.levels else " (level full)"))
            for c in checks
            if c.group() == name
        ]
        if rows:
            click.echo(f"{title}\n" + "\n".join(f"  {n:<36} {s}" for n, s in rows) + "\n")
