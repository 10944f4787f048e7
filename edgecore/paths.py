"""Where edgecore keeps what it made and fetched: one folder, moved as a whole with EDGECORE_HOME.

Everything in it can be deleted: artifacts are built again, sources fetched again, environments installed again.
"""

from __future__ import annotations

from pathlib import Path

from edgecore.contract.resources import home

__all__ = ["artifacts", "environments", "home", "index", "locks", "sources"]


def artifacts() -> Path:
    """The store's artifacts, one folder each."""
    return home() / "artifacts"


def sources() -> Path:
    """Model files that were downloaded."""
    return home() / "sources"


def environments() -> Path:
    """Interpreters of plugins and exporters that do not live in the caller's environment."""
    return home() / "environments"


def index() -> Path:
    """Small JSON caches: manifests, digests of source files, measured bandwidth, last probes."""
    return home() / "index"


def locks() -> Path:
    """Lock files. They may stay behind: only a held lock means something."""
    return home() / "locks"
