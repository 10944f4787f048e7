"""One file over HTTP, that may be cut anywhere: what came is kept, and only the rest is asked for.

Own code because neither unearth nor httpx resumes a download. Ranges: RFC 9110, section 14.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgecore.contract.errors import CorruptModel, DoesNotFit, ModelNotFound, Timeout
from edgecore.contract.progress import Progress
from edgecore.disk import CHUNK

_ATTEMPTS = 5
"""In a row without a single new byte."""
PAUSE = 0.5
"""Seconds before the second attempt that brought nothing, doubled for each further one."""
_RETRIED = {408, 425, 429, 500, 502, 503, 504}


class Http(Protocol):
    """What is used of an HTTP client (httpx's words)."""

    def get_stream(self, url: str, *, headers: Mapping[str, str] | None = None) -> AbstractContextManager[Any]: ...


@dataclass(frozen=True, slots=True)
class Download:
    """What to fetch and how to know that it is right."""

    url: str
    name: str
    """For people: URLs can carry passwords."""
    server: str
    """`the package index`, `the hub`: who gave the digests and is to be asked."""
    digests: Mapping[str, str]
    """Algorithm -> hex digest; may be empty. `git-sha1` is what git names a blob by."""
    request_error: type[Exception]
    """What the client raises when the connection fails."""


def download(client: Http, wanted: Download, partial: Path, progress: Progress) -> None:
    """Leaves the whole file, its digest checked, at `partial`, which may hold its beginning already.

    Raises `CorruptModel` for a wrong digest (nothing is kept), `Timeout` when the connection keeps failing (what came
    is kept), `ModelNotFound` when the server refuses, `DoesNotFit`.
    """
    if not wanted.digests:
        # Nothing could tell an older beginning from this file's.
        partial.unlink(missing_ok=True)
    began_with = partial.stat().st_size if partial.exists() else 0
    if began_with and _matches(partial, wanted.digests):
        return
    _fetch(client, wanted, partial, progress)
    if _matches(partial, wanted.digests):
        return
    partial.unlink()
    if began_with:
        # The old beginning may be the wrong half: once more from the start.
        _fetch(client, wanted, partial, progress)
        if _matches(partial, wanted.digests):
            return
        partial.unlink()
    algorithm, digest = _strongest(wanted.digests)
    raise CorruptModel(
        f"{wanted.name} does not have the {algorithm} that {wanted.server} gives ({digest[:12]}…); nothing was kept",
        hint=f"the same command again, or ask whoever runs {wanted.server}",
    )


def _fetch(client: Http, wanted: Download, partial: Path, progress: Progress) -> None:
    validator: dict[str, str] = {}
    failures, reason = 0, ""
    while failures < _ATTEMPTS:
        have = partial.stat().st_size if partial.exists() else 0
        if failures:
            time.sleep(PAUSE * 2 ** (failures - 1))
        try:
            if _attempt(client, wanted, partial, have, validator, progress):
                return
            reason = "the server closed the connection"
        except (wanted.request_error, _Retry) as error:
            reason = str(error) or type(error).__name__
        now = partial.stat().st_size if partial.exists() else 0
        failures = 0 if now > have else failures + 1
    raise Timeout(
        f"fetching {wanted.name} stopped after {partial.stat().st_size if partial.exists() else 0:,} bytes: {reason}",
        hint="the same command again: it goes on where it stopped",
    )


class _Retry(Exception):
    """A status that may pass."""


def _attempt(
    client: Http, wanted: Download, partial: Path, have: int, validator: dict[str, str], progress: Progress
) -> bool:
    """One request; True when the file is whole. `validator` keeps what tells this file from a later one."""
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", **validator}
    with client.get_stream(wanted.url, headers=headers) as response:
        status = response.status_code
        if status == 416:
            # Nothing after what is here: whole, or longer than the file is by now.
            return _whole_size(response) == have or _start_again(partial)
        if status in _RETRIED:
            raise _Retry(f"HTTP status {status}")
        if status not in (200, 206):
            raise ModelNotFound(f"{wanted.server} refuses {wanted.name}: HTTP status {status}")
        if etag := response.headers.get("ETag"):
            validator.update({} if etag.startswith("W/") else {"If-Range": etag})
        at = have if status == 206 else 0
        if status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            return _start_again(partial)
        total = _whole_size(response)
        _check_room(partial, (total or 0) - at)
        with partial.open("r+b" if at else "wb") as file:
            file.seek(at)
            file.truncate()
            for chunk in response.iter_bytes():
                file.write(chunk)
                at += len(chunk)
                progress(at, total or at, f"fetching {wanted.name}")
        return total is None or at == total


def _start_again(partial: Path) -> bool:
    partial.unlink(missing_ok=True)
    return False


def _whole_size(response: Any) -> int | None:
    """The whole file's bytes, by either header; None where the server does not say."""
    if found := re.search(r"/(\d+)$", response.headers.get("Content-Range", "")):
        return int(found[1])
    length = response.headers.get("Content-Length", "")
    return int(length) if response.status_code == 200 and length.isdecimal() else None


def _check_room(partial: Path, needed: int) -> None:
    free = shutil.disk_usage(partial.parent).free
    if needed > free:
        raise DoesNotFit(
            f"{partial.parent} has {free / 1e6:,.0f} MB free, and {needed / 1e6:,.0f} MB are still to come",
            hint="edgecore cache ls, then edgecore cache rm ID; or set EDGECORE_HOME to a larger disk",
        )


def _strongest(digests: Mapping[str, str]) -> tuple[str, str]:
    preferred = ("sha256", "sha512", "sha384", *digests)
    return next((name, digests[name]) for name in preferred if name in digests)


def _matches(path: Path, digests: Mapping[str, str]) -> bool:
    if not digests:
        return True
    algorithm, expected = _strongest(digests)
    if algorithm == "git-sha1":
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == expected.lower()
