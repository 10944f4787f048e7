"""Servers and settings are each test's own: only what is marked `network` meets the user's package index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.models import write_gguf
from support.serving import Site, serving

_SETTINGS = (
    "PIP_", "UV_", "HF_", "HUGGING_FACE_", "NETRC", "XDG_CONFIG_",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy",
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_settings(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """An empty user's home; pip reads one file in it, which tests write. Answers that file."""
    home = tmp_path_factory.mktemp("user")
    if request.node.get_closest_marker("network"):
        return home / "pip.conf"
    for name in list(os.environ):
        if name.startswith(_SETTINGS):
            monkeypatch.delenv(name)
    config = home / "pip.conf"
    config.write_text("")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    return config


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as running:
        yield running


@pytest.fixture
def index(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The site is the one package index that pip knows."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{site.address}/simple")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A GGUF file."""
    return write_gguf(tmp_path_factory.mktemp("model") / "m.gguf").read_bytes()
