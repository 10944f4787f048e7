"""As much as a header may claim, it costs no more time or memory than its own size explains.

Each file is opened in a process of its own, whose peak of memory is what is measured.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecore.checkpoint.gguf_file import LONGEST_HEADER, MOST_ENTRIES, parse_gguf
from edgecore.checkpoint.safetensors_file import MOST_TENSORS, parse_safetensors
from edgecore.contract.errors import UnsupportedModel

from support.peak import run_measured

pytest.importorskip("resource", reason="needs Unix, whose way peak memory is read")

MEASURED = """
import sys, time
from pathlib import Path
from edgecore.checkpoint.gguf_file import GgufArray, parse_gguf, read_gguf
from edgecore.checkpoint.safetensors_file import read_file
from edgecore.contract.errors import EdgecoreError
file, before, begin = Path(sys.argv[1]), peak(), time.process_time()
try:
    if file.suffix == ".gguf":
        header, _ = read_gguf(file)
        for value in header.metadata.values():
            if isinstance(value, GgufArray):
                value.read()
    else:
        read_file(file)
    answer = ""
except EdgecoreError as error:
    answer = error.what
print(time.process_time() - begin, peak() - before, answer)
"""


def _opened(file: Path) -> tuple[float, int, str]:
    """Seconds of the processor, bytes of memory beyond the start, and the error; "" where there was none."""
    seconds, memory, answer = run_measured(MEASURED, file).split(" ", 2)
    return float(seconds), int(memory), answer


def _gguf(tensors: int, entries: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, entries)


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _safetensors(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def _entries(count: int) -> bytes:
    return b",".join(b'"%d":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}' % (n, n, n + 1) for n in range(count))


def _tensors(count: int) -> bytes:
    entry = struct.pack("<IQI", 1, 1, 24)
    return b"".join(_text(b"%d" % n) + entry + struct.pack("<Q", 32 * n) for n in range(count))


HOSTILE: dict[str, Callable[[], tuple[str, bytes, str]]] = {
    "an array of all the empty texts that are accepted": lambda: (
        "a.gguf", _gguf(0, 1) + _text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 22) + bytes(8 << 22), ""),
    "more empty texts, in many arrays": lambda: (
        "a.gguf", _gguf(0, 9) + b"".join(
            _text(b"%d" % n) + struct.pack("<IIQ", 9, 8, 1 << 20) + bytes(8 << 20) for n in range(9)),
        "is more than the 0 that are accepted"),
    "as many metadata keys as are accepted": lambda: (
        "a.gguf", _gguf(0, MOST_ENTRIES) + b"".join(
            _text(b"%d" % n) + struct.pack("<II", 4, 0) for n in range(MOST_ENTRIES)), ""),
    "as many tensors as are accepted": lambda: (
        "a.gguf", _gguf(MOST_ENTRIES, 0) + _tensors(MOST_ENTRIES) + bytes(32 * MOST_ENTRIES + 32), ""),
    "a text as long as a header may be": lambda: (
        "a.gguf", _gguf(0, 1) + _text(b"k") + struct.pack("<I", 8) + _text(bytes(LONGEST_HEADER)),
        "do not fit"),
    "a million tensors in a safetensors header": lambda: (
        "a.safetensors", _safetensors(b"{" + _entries(1_000_000) + b"}"), "header length"),
    "as many tensors as a safetensors header holds": lambda: (
        "a.safetensors", _safetensors(b"{" + _entries(120_000) + b"}") + bytes(120_000), "120000 tensors"),
    "the same key a million times": lambda: (
        "a.safetensors", _safetensors(b"{" + b",".join([b'"a":1'] * 1_000_000) + b"}"), "'a': stands twice"),
    "one key twice, behind many others": lambda: (
        "a.safetensors", _safetensors(b"{" + b",".join(b'"%d":1' % n for n in (*range(700_000), 7)) + b"}"),
        "'7': stands twice"),
    "millions of empty lists": lambda: (
        "a.safetensors", _safetensors(b'{"a":[' + b",".join([b"[]"] * 2_700_000) + b"]}"), "'a': is not an object"),
    "nesting without end": lambda: ("a.safetensors", _safetensors(b'{"a":' * 1_000_000), "is not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_what_a_header_claims_costs_little(case: str, tmp_path: Path) -> None:
    name, data, words = HOSTILE[case]()
    (tmp_path / name).write_bytes(data)
    seconds, memory, answer = _opened(tmp_path / name)
    assert words in answer
    assert answer == "" or answer.startswith(str(tmp_path / name))
    assert seconds < 10  # 2 where nothing else runs
    assert memory < 400 << 20
    assert (tmp_path / name).read_bytes() == data


def test_a_file_of_terabytes_of_nothing_is_refused_at_once(tmp_path: Path) -> None:
    for name, start in (("a.gguf", _gguf(1 << 16, 1 << 16)), ("a.safetensors", bytes(8))):
        with (tmp_path / name).open("wb") as file:
            file.write(start)
            file.truncate(1 << 42)
        seconds, memory, answer = _opened(tmp_path / name)
        assert answer.startswith(str(tmp_path / name))
        assert seconds < 2
        assert memory < 64 << 20


def test_the_limits_leave_room_for_what_is_real() -> None:
    many = _gguf(2000, 0) + _tensors(2000)
    assert len(parse_gguf(Path("m.gguf"), many + bytes(-len(many) % 32 + 32 * 2000)).tensors) == 2000
    header = json.dumps({"__metadata__": {"format": "pt"}})[:-1].encode() + b"," + _entries(20_000) + b"}"
    assert len(parse_safetensors(Path("m"), _safetensors(header) + bytes(20_000))) == 20_000
    with pytest.raises(UnsupportedModel) as caught:
        parse_safetensors(Path("m"), _safetensors(b"{" + _entries(MOST_TENSORS + 1) + b"}") + bytes(MOST_TENSORS + 1))
    assert str(MOST_TENSORS) in caught.value.supported
