"""The same request is the same artifact: an id from everything that determines the result."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from edgecore.contract.errors import BadRequest

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def request_id(fields: Mapping[str, Any]) -> str:
    """16 hex characters of the SHA-256 over canonical JSON: the order of keys does not matter, types do (1 is not 1.0).

    Raises `TypeError` or `ValueError` for what JSON cannot hold exactly: a silent `str()` would make two requests one.
    """
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def check_id(identity: str) -> str:
    """An id is a folder's name, so it may not be a path. Raises `BadRequest`."""
    if not _ID.fullmatch(identity):
        raise BadRequest(
            f"{identity!r} is not an artifact's id",
            supported="letters, digits, '.', '_' and '-', at most 128",
            hint="edgecore cache ls",
        )
    return identity
