"""The user's package index, as the user's own pip (or uv) is configured to reach it: mirrors, private indexes, folders
of wheels, certificates, credentials. What installs there, fetches here; there is nothing to configure twice."""

from __future__ import annotations

import ast
import logging
import os
import shutil
import ssl
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from edgecore.contract.errors import BadRequest

_SECTIONS = ("global", "download", "install", ":env:")
"""Of `pip config list`, the later the stronger."""


@dataclass(frozen=True, slots=True)
class IndexConfiguration:
    """Where packages come from. Empty `index_urls` with `no_index` False cannot be: the default is filled in."""

    index_urls: tuple[str, ...]
    find_links: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    certificates: str = ""
    """File of authorities; empty takes those of the HTTP library (SSL_CERT_FILE)."""
    client_certificate: str = ""
    proxy: str = ""
    timeout: float = 15.0


def read_configuration() -> IndexConfiguration:
    """pip's configuration; where it names no index, uv's. The default index is what unearth holds for it."""
    pip, uv = _pip_options(), _uv_options()
    main = pip.get("index-url") or uv["index"] or _default_index()
    extra = [*pip.get("extra-index-url", "").split(), *uv["extra"]]
    indexes = [] if pip.get("no-index", "").lower() in ("1", "true", "yes", "on") else [main, *extra]
    return IndexConfiguration(
        index_urls=tuple(dict.fromkeys(indexes)),
        find_links=tuple(dict.fromkeys([*pip.get("find-links", "").split(), *uv["find_links"]])),
        trusted_hosts=tuple(pip.get("trusted-host", "").split()),
        certificates=pip.get("cert", ""),
        client_certificate=pip.get("client-cert", ""),
        proxy=pip.get("proxy", ""),
        timeout=float(pip.get("timeout") or pip.get("default-timeout") or 15),
    )


def _pip_options() -> dict[str, str]:
    """As `pip config list` says. An environment that uv made has no pip: then the one on the path is asked, and where
    there is none at all, what pip would read from the variables still counts."""
    elsewhere = shutil.which("pip") or shutil.which("pip3")
    for pip in ([sys.executable, "-m", "pip"], [elsewhere] if elsewhere else None):
        if pip:
            listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False)
            if listed.returncode == 0:
                return parse_pip_configuration(listed.stdout)
    return {k[4:].lower().replace("_", "-"): v for k, v in os.environ.items() if k.startswith("PIP_")}


def parse_pip_configuration(text: str) -> dict[str, str]:
    """Options by name from lines like `global.index-url='https://…'`: as in pip itself a command's section wins over
    global, and the environment over both."""
    found: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in text.splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if section in found and value:
            found[section][option] = str(ast.literal_eval(value))
    return {option: value for section in _SECTIONS for option, value in found[section].items()}


def _uv_options() -> dict[str, Any]:
    """uv's variables and its user's file (https://docs.astral.sh/uv/reference/settings/)."""
    env = os.environ
    named = [entry.rpartition("=")[2] if "=" in entry.partition("://")[0] else entry for entry in _words("UV_INDEX")]
    options: dict[str, Any] = {
        "index": env.get("UV_DEFAULT_INDEX") or env.get("UV_INDEX_URL", ""),
        "extra": [*named, *_words("UV_EXTRA_INDEX_URL")],
        "find_links": _words("UV_FIND_LINKS"),
    }
    file = Path(env.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "uv" / "uv.toml"
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return options
    indexes = [entry for entry in data.get("index", []) if isinstance(entry, dict) and "url" in entry]
    default = next((entry["url"] for entry in indexes if entry.get("default")), data.get("index-url", ""))
    options["index"] = options["index"] or default
    options["extra"] += [e["url"] for e in indexes if not e.get("default")] + list(data.get("extra-index-url", []))
    options["find_links"] += list(data.get("find-links", []))
    return options


def _words(variable: str) -> list[str]:
    return os.environ.get(variable, "").replace(",", " ").split()


def _default_index() -> str:
    from unearth import PackageFinder

    return str(PackageFinder().sources[0]["url"])


class PackageIndex:
    """A finder and its HTTP client, with the user's credentials (URL, netrc, keyring)."""

    def __init__(self, configuration: IndexConfiguration) -> None:
        from unearth import PackageFinder
        from unearth.fetchers import PyPIClient

        self.client = _client(configuration)
        # httpx or its successor, whichever this unearth speaks through.
        library = import_module(PyPIClient.__mro__[1].__module__.partition(".")[0])
        self.request_error: type[Exception] = library.RequestError
        self.finder = PackageFinder(
            self.client,
            index_urls=configuration.index_urls,
            find_links=_existing(configuration.find_links),
            ignore_compatibility=True,
            prefer_binary=[":all:"],
        )

    def close(self) -> None:
        self.client.close()


def _client(configuration: IndexConfiguration) -> Any:
    """unearth's own, untyped: its protocol for clients and its client disagree."""
    from unearth.auth import MultiDomainBasicAuth
    from unearth.fetchers import PyPIClient

    client = PyPIClient(
        trusted_hosts=configuration.trusted_hosts,
        verify=_verify(configuration),
        timeout=configuration.timeout,
        follow_redirects=True,
        proxy=configuration.proxy or None,
    )
    client.auth = MultiDomainBasicAuth(prompting=False, index_urls=configuration.index_urls)
    return client


def _verify(configuration: IndexConfiguration) -> ssl.SSLContext | bool:
    if not (configuration.certificates or configuration.client_certificate):
        return True
    try:
        context = ssl.create_default_context(cafile=configuration.certificates or None)
        if configuration.client_certificate:
            context.load_cert_chain(configuration.client_certificate)
    except OSError as error:
        raise BadRequest(
            f"pip's certificates (cert, client-cert) cannot be read: {error}", hint="python -m pip config list"
        ) from error
    return context


def _existing(find_links: tuple[str, ...]) -> list[str]:
    """unearth refuses a folder that is not there; pip passes over it."""
    return [link for link in find_links if "://" in link or os.path.exists(link)]


@contextmanager
def overheard(logger: str) -> Iterator[list[str]]:
    """The warnings of a library that says what went wrong only in its log: for people, never parsed."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    ear, log = Ear(logging.WARNING), logging.getLogger(logger)
    log.addHandler(ear)
    propagate, log.propagate = log.propagate, False
    try:
        yield heard
    finally:
        log.removeHandler(ear)
        log.propagate = propagate


def digests_of(link: Any) -> Mapping[str, str]:
    """What the index gives for a file: algorithm -> hex digest."""
    return {name: values[0] for name, values in (link.hash_option or {}).items()}
