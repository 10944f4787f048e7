"""The toy plugin, connected."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgecore import registry
from edgecore.workers import Backend, connect

from support.plugins import write_plugin

Connect = Callable[..., Backend]


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Connect]:
    """Connects to a toy whose hooks module ends with the given source."""
    opened: list[Backend] = []

    def start(hooks: str = "", **how: Any) -> Backend:
        folder = write_plugin(tmp_path / f"plugin{len(opened)}", f"toy{uuid.uuid4().hex[:8]}", hooks=hooks)
        opened.append(connect(registry.find(folder), **how))
        return opened[-1]

    yield start
    for backend in opened:
        backend.close()
