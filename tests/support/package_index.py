"""A package index on a test's own server: what pip would be offered.

from support.package_index import WHEEL, offer, wheel
offer(site, {WHEEL: wheel({"demo/model.gguf": data})})
"""

from __future__ import annotations

import hashlib
import io
import zipfile

from support.serving import Site

METADATA = b"Metadata-Version: 2.4\nName: demo\nVersion: 1.0\nLicense-Expression: Apache-2.0\n\nLicense: not this one\n"
WHEEL = "demo-1.0-py3-none-any.whl"


def wheel(files: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, data in {**files, "demo-1.0.dist-info/METADATA": METADATA}.items():
            archive.writestr(name, data)
    return written.getvalue()


def offer(site: Site, packages: dict[str, bytes], name: str = "demo", digest: str | None = None) -> None:
    """An index page with links as the simple API has them (PEP 503)."""
    links = []
    for filename, data in packages.items():
        site.files[f"/files/{filename}"] = data
        fragment = f"#sha256={digest or hashlib.sha256(data).hexdigest()}" if digest != "" else ""
        links.append(f'<a href="/files/{filename}{fragment}">{filename}</a>')
    page = f"/simple/{name}/"
    site.files[page] = f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode()
    site.types[page] = "text/html"
