"""Publishes what the conformance suite finds about this repository's backends: docs/reports, one folder a report.

    python benchmarks/conformance_reports.py                             # runs all of BACKENDS, level quick
    python benchmarks/conformance_reports.py --level full --backend llamacpp
    python benchmarks/conformance_reports.py --bundle DIR --bundle DIR   # runs nothing: bundles that are there already
    python benchmarks/conformance_reports.py --render                    # the pages anew, from each report.json

A bundle is published when `edgecore conformance verify` calls it consistent and when nothing in it names this machine,
its user or its folders. What is kept is report.json, the page and the badge; raw outputs are too large for a
repository. Ends with 1 where a row of a published report is not good.
"""

from __future__ import annotations

import argparse
import getpass
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgecore_conformance import bundle as bundles
from edgecore_conformance.evidence import rendered
from edgecore_conformance.evidence.badge import words
from edgecore_conformance.evidence.page import facts_of
from edgecore_conformance.evidence.report import validate
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.verify import verify

ROOT = Path(__file__).parents[1]
REPORTS = ROOT / "docs/reports"
BACKENDS = ("reference", "llamacpp", "mlx", "openvino", "onnxruntime", "onnxruntime:npu-emulator")
"""Each with the device where that is not its first."""
KEPT = (bundles.PAGE, bundles.BADGE)
"""Beside report.json, from which they follow."""
PAGE = """\
# Reports

What the [conformance suite](../conformance.md) found about the backends of this repository. Each page is the
`index.html` of a run, and follows from the `report.json` beside it; a test holds the two together, and
`benchmarks/conformance_reports.py` makes both. A report speaks of the suite, the versions and the machine that it
names, and of no other.

{body}
The raw outputs of these runs are not kept here. To check, run the same command; to be sure that the inputs were not
known before, choose a seed: `edgecore conformance run --challenge SEED`.
"""


def run(named: str, level: str, out: Path) -> Path:
    """The bundle of a run of all rows of `BACKEND` or `BACKEND:DEVICE`, whatever its exit code."""
    backend, _, device = named.partition(":")
    command = [sys.executable, "-m", "edgecore", "conformance", "run"]
    command += ["--backend", backend, "--level", level, "--out", out.name]
    command += ["--device", device] if device else []
    print(f"running {' '.join(command[1:])}", flush=True)
    subprocess.run(command, cwd=out.parent, check=False)
    return out


def publish(bundle: Path, to: Path) -> Path:
    """Takes a bundle's report into its own folder under `to`, in the place of an earlier one. Raises `SystemExit`."""
    found = verify(bundle)
    if not found.consistent:
        raise SystemExit(f"{bundle} is not consistent:\n" + "\n".join(found.contradictions))
    report = json.loads((bundle / bundles.REPORT).read_text(encoding="utf-8"))
    if not report["claims"]["whole"]:
        raise SystemExit(f"{bundle} holds {words(report)}: a report of all rows is published")
    for name in (bundles.REPORT, *KEPT):
        if named := [word for word in ours() if word in (bundle / name).read_text(encoding="utf-8")]:
            raise SystemExit(f"{bundle / name} names {', '.join(named)}")
    header = report["header"]
    folder = to / f"{header['plugin']['name']}-{header['device']['name']}-{header['level']}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (bundles.REPORT, *KEPT):
        shutil.copyfile(bundle / name, folder / name)
    return folder


def ours() -> list[str]:
    """Words that tell whose machine this is. Short ones are left out: they stand in other words as well."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = ""
    folders = [f"{Path.home()}/", str(ROOT), sys.prefix, tempfile.gettempdir() + "/"]
    return [*folders, *(word for word in (socket.gethostname(), user) if len(word) > 5)]


def render(to: Path) -> None:
    """The page of reports, and each report's page and badge, from what each report.json says."""
    reports = list(published(to))
    for folder, report in reports:
        made = rendered(report)
        for name in KEPT:
            (folder / name).write_text(made[name], encoding="utf-8", newline="\n")
    (to / "index.md").write_text(page(reports), encoding="utf-8", newline="\n")


def published(to: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for file in sorted(to.glob(f"*/{bundles.REPORT}")):
        report = json.loads(file.read_text(encoding="utf-8"))
        validate(report)
        yield file.parent, report


def page(reports: Sequence[tuple[Path, dict[str, Any]]]) -> str:
    """docs/reports/index.md."""
    lines = ["| report | claims | rows | on | made |", "|---|---|---|---|---|"]
    for folder, report in reports:
        header, facts, name = report["header"], facts_of(report["header"]), folder.name
        counts = ", ".join(f"{n} {o.replace('_', ' ')}" for o, n in report["outcomes"].items())
        where = f"{facts['machine']}; {facts['system']}"
        cells = (
            f"[![{name}: {words(report)}]({name}/{bundles.BADGE})]({name}/{bundles.PAGE}) "
            f"[report.json]({name}/{bundles.REPORT})",
            words(report),
            f"{report['rows_selected']} of {report['rows_of_level']}: {counts}",
            f"{where}; {facts['runtime']}",
            f"{header['begun'][:10]}, suite {facts['suite']}",
        )
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return PAGE.format(body="\n".join(lines) + "\n" if reports else "None has been published yet.\n")


def good(report: dict[str, Any]) -> bool:
    return all(Outcome(row["outcome"]).good for row in report["rows"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", action="append", metavar="NAME[:DEVICE]", help="all of BACKENDS by default")
    parser.add_argument("--level", choices=("quick", "full"), default="quick")
    parser.add_argument("--bundle", action="append", type=Path, help="publish this bundle; may be given again")
    parser.add_argument("--keep", type=Path, help="keep the bundles in this folder, not in a temporary one")
    parser.add_argument("--render", action="store_true", help="publish nothing new")
    parser.add_argument("--to", type=Path, default=REPORTS)
    how = parser.parse_args(arguments)
    given = how.bundle or []
    if not given and not how.render:
        # Kept after a refusal: a run may have taken an hour.
        room = Path(how.keep or tempfile.mkdtemp(prefix="conformance-reports-"))
        room.mkdir(parents=True, exist_ok=True)
        print(f"the bundles lie in {room}", flush=True)
        named = how.backend or BACKENDS
        given = [run(name, how.level, room / f"{name.replace(':', '-')}-{how.level}") for name in named]
    for bundle in given:
        print(f"published {publish(bundle, how.to)}", flush=True)
    render(how.to)
    return 0 if all(good(report) for _, report in published(how.to)) else 1


if __name__ == "__main__":
    sys.exit(main())
