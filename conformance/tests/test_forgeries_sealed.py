"""Bundles that were edited with more skill, and files that only a hostile stranger writes."""

from __future__ import annotations

import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecore.contract.errors import BadRequest

from support.forging import (
    LLAMA,
    LLAMA_RAW,
    digest_rows,
    drop,
    edit_header,
    found,
    read,
    restamp,
    sealed,
    write,
)


def test_a_selection_whose_excuse_was_added_afterwards(bundle: Path) -> None:
    drop(bundle, "text.wrong", "report", "rows", "selected")
    (bundle / "raw/text.wrong.json").unlink()
    sessions = read(bundle / "sessions.json")
    sessions.append({**sessions[0], "command": "edgecore conformance run -k answers"})
    write(bundle / "sessions.json", sessions)
    write(bundle / "report.json", {**read(bundle / "report.json"), "sessions": sessions})
    assert "the command selects all of them; the first that is left out is text.wrong" in sealed(bundle)
    sessions = sessions[1:]
    write(bundle / "sessions.json", sessions)
    write(bundle / "report.json", {**read(bundle / "report.json"), "sessions": sessions})
    assert "sessions.json has another command than header.json" in sealed(bundle)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": {"name": "mine", "sha256": "0"}}, "names a real model, and level quick has none"),
        ({"contract": "9.9"}, "names contract 9.9"),
        ({"device": {"name": "cpu", "emulated": True}}, "do not agree whether cpu is emulated"),
        ({"begun": "2100-01-01T00:00:00+00:00"}, "expired on 2099-01-01"),
        ({"begun": "yesterday"}, "cannot be read to the end: ValueError"),
    ],
)
def test_a_header_that_no_run_of_this_manifest_writes(bundle: Path, change: dict[str, Any], says: str) -> None:
    exception = {
        "check": "text.wrong",
        "when": {},
        "kind": "flaky",
        "reason": "r",
        "issue": "i",
        "expires": "2099-01-01",
    }
    edit_header(bundle, lambda header: header.update({"expectations": [exception], **change}))
    restamp(bundle)
    assert says in sealed(bundle)


def test_an_exception_that_matches_no_row(bundle: Path) -> None:
    exception = {
        "check": "text.none",
        "when": {},
        "kind": "xfail",
        "reason": "r",
        "issue": "i",
        "expires": "2099-01-01",
    }
    edit_header(bundle, lambda header: header.update(expectations=[exception]))
    restamp(bundle)
    assert "exception 1 (text.none) matches no row" in sealed(bundle)


def test_a_file_that_was_added_and_sealed(bundle: Path) -> None:
    (bundle / "README.html").write_text("all proven")
    (bundle / "raw/text.elsewhere.json").write_text("{}")
    assert sealed(bundle).splitlines() == [
        "README.html is no file of a bundle", "raw/text.elsewhere.json is no file of a bundle",
    ]  # fmt: skip


def test_a_report_that_was_taken_away(bundle: Path) -> None:
    report = read(bundle / "report.json")
    (bundle / "junit.xml").unlink()
    report["files"].pop("junit.xml")
    write(bundle / "report.json", report)
    assert found(bundle) == "junit.xml does not show what report.json says"


def test_a_name_that_stands_twice_is_read_by_nobody(bundle: Path) -> None:
    text = (bundle / "report.json").read_text(encoding="utf-8")
    (bundle / "report.json").write_text(text.replace("{", '{"outcome": "passed", ', 1), encoding="utf-8")
    with pytest.raises(BadRequest, match="'outcome' stands twice in one object"):
        found(bundle)


@pytest.mark.parametrize("name", ["header.json", "report.json", "sessions.json"])
def test_what_is_nested_without_end_is_an_answer_and_no_traceback(bundle: Path, name: str) -> None:
    (bundle / name).write_text("[" * 100_000 + "]" * 100_000)
    with suppress(BadRequest):
        assert found(bundle)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has none")
def test_a_pipe_or_a_link_in_the_place_of_a_file_is_not_read(bundle: Path) -> None:
    (bundle / "header.json").unlink()
    os.mkfifo(bundle / "header.json")
    with pytest.raises(BadRequest, match=r"header.json is no regular file"):
        found(bundle)
    (bundle / "header.json").unlink()
    (bundle / "header.json").symlink_to("/dev/zero")
    with pytest.raises(BadRequest, match=r"header.json is no regular file"):
        found(bundle)


def test_arrays_that_would_fill_the_memory_are_not_unpacked(bundle: Path) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (2**30,)}
    with (
        zipfile.ZipFile(bundle / f"{LLAMA_RAW}.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("logits.npy", "w") as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(2**6):
            file.write(bytes(2**24))
    digest_rows(bundle, LLAMA)
    assert f"{LLAMA}: raw outputs cannot be read: ValueError: text.answers_family=llama_.npz unpacks" in sealed(bundle)


@pytest.mark.parametrize("kind", ["U3", "datetime64[s]", "V8", "complex64", "bool"])
def test_arrays_of_another_kind_are_an_answer_and_no_traceback(bundle: Path, kind: str) -> None:
    with np.load(bundle / f"{LLAMA_RAW}.npz") as stored:
        shape = stored["logits"].shape
    np.savez(bundle / f"{LLAMA_RAW}.npz", logits=np.zeros(shape, kind))
    digest_rows(bundle, LLAMA)
    assert f"{LLAMA}: " in sealed(bundle)
