"""Make, list and remove environments of plugins and exporters."""

from __future__ import annotations

from edgecore.registry import Entry


def find_exporter(entry: Entry) -> tuple[str, str]:
    raise NotImplementedError
