"""How many threads a call gets: what was asked for, within what ggml is built for."""

from __future__ import annotations

from edgecore.contract import BadRequest, usable_threads

MOST = 512
"""What ggml is built for (GGML_MAX_N_THREADS); tens of thousands end the process."""


def chosen_threads(asked: int | None) -> int:
    """What was asked for, else `usable_threads`. Raises `BadRequest`."""
    if asked is not None and not 1 <= asked <= MOST:
        raise BadRequest(f"{asked} threads", supported=f"1 to {MOST} threads")
    return asked or usable_threads()
