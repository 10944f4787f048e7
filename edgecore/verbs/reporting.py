"""What a report says beside its figures: on what machine, with what, under which conditions."""

from __future__ import annotations

from datetime import UTC, datetime

from edgecore import __version__
from edgecore.machine import facts, match
from edgecore.verbs.benchmarking import Measured


def conditions(measured: Measured) -> dict[str, str]:
    """Name and value, in the order in which a reader asks."""
    machine, comparison = facts(), measured.comparison
    profile = next(iter(match(machine)), None)
    entries = {runnable.entry.name: runnable.entry for runnable in measured.runnables}
    found = {
        "machine": f"{machine.chip}, {machine.system} {machine.architecture}, {machine.threads} threads, "
        f"{machine.memory / 1e9:.1f} GB",
        "profile": profile.title if profile else "none matches",
        "measured": datetime.now(UTC).isoformat(timespec="minutes"),
        "edgecore": __version__,
    }
    for name, entry in entries.items():
        runtime = entry.ready_manifest.runtime.distribution
        found[name] = f"{entry.version} on {runtime} {entry.runtime_version}"
    for arm in comparison.arms:
        found[f"{arm.label}: conditions"] = ", ".join(f"{k} {v}" for k, v in arm.conditions.items())
    load = comparison.workload
    found["workload"] = (
        f"{len(load.prompt)} prompt tokens, {load.decode} decoded, {load.mode}, {comparison.pairs} rounds"
    )
    if comparison.bandwidth:
        found["memory bandwidth"] = f"{comparison.bandwidth / 1e9:.1f} GB/s, measured here"
    for runnable in measured.runnables:
        if not runnable.artifact.native:
            found[f"{runnable.artifact.precision}: artifact"] = runnable.artifact.id
    return found
