"""What native code does wrong ends in a worker and as a typed error: aborts, a full disk, an impatient caller."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgecore import registry
from edgecore.contract import GREEDY, Artifact, Cancelled, CorruptModel, DoesNotFit, WorkerCrashed
from edgecore.workers import Backend, connect

from support.tiny import tiny_llama

PLUGIN = Path(__file__).parents[1]
OPTIONS = {"kv_cache": "f16", "flash_attention": "auto"}


@pytest.fixture
def backend() -> Iterator[Backend]:
    with connect(registry.find(str(PLUGIN))) as opened:
        yield opened


def test_a_session_in_a_worker_streams(backend: Backend, tiny_gguf: Artifact) -> None:
    session: Any = backend.open(tiny_gguf, device="cpu", threads=1, options=OPTIONS)
    prompt = session.tokenize("The lamp")
    pieces = list(session.generate(prompt, max_tokens=5, sampling=GREEDY))
    assert pieces[-1].finish == "length"
    assert sum(len(chunk) for chunk in session.score(prompt)) == len(prompt)
    assert session.placement.share("cpu") == 1.0


def test_a_file_that_makes_libllama_fail_leaves_the_caller_alive(
    backend: Backend, tiny_gguf: Artifact, native: Callable[[Path], Artifact], tmp_path: Path
) -> None:
    """The header is sound and lies: a token count that contradicts the table, a head count that divides nothing."""
    whole = tiny_gguf.model.read_bytes()
    key = b"llama.attention.head_count"
    at = whole.index(key) + len(key) + 4
    file = tmp_path / "liar.gguf"
    file.write_bytes(whole[:at] + (7).to_bytes(4, "little") + whole[at + 4 :])
    with pytest.raises((CorruptModel, WorkerCrashed)) as failed:
        backend.open(native(file), device="cpu", threads=1, options=OPTIONS)
    assert "liar.gguf" in str(failed.value) or "signal" in str(failed.value).lower()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a file-size limit, which Windows lacks")
@pytest.mark.parametrize("verb", ["convert", "quantize"])
def test_a_full_disk_is_said(backend: Backend, tiny: Path, tiny_gguf: Artifact, tmp_path: Path, verb: str) -> None:
    process = psutil.Process(backend.pid)
    if not hasattr(process, "rlimit"):
        pytest.skip("needs a file-size limit for another process, which only Linux has")
    process.rlimit(psutil.RLIMIT_FSIZE, (300_000, 300_000))
    calls: dict[str, Callable[[], Any]] = {
        "convert": lambda: backend.convert(source=tiny, out=tmp_path, format="gguf", precision="f16"),
        "quantize": lambda: backend.quantize(artifact=tiny_gguf, out=tmp_path, precision="q8_0"),
    }
    with pytest.raises(DoesNotFit):
        calls[verb]()


def test_a_quantization_can_be_cancelled(
    backend: Backend, native: Callable[[Path], Artifact], llama: Any, tmp_path: Path
) -> None:
    """Not by libllama: by the end of its worker, two seconds after the asking at most."""
    source = tiny_llama(tmp_path / "hf", layers=24, hidden=512, intermediate=1536, heads=8)
    llama.convert(source, tmp_path / "f16")
    seen = threading.Event()

    def cancel(done: int, total: int, stage: str = "") -> None:
        seen.set()
        raise Cancelled("enough")

    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(Cancelled):
        backend.quantize(
            artifact=native(tmp_path / "f16" / "model.gguf"),
            out=out,
            precision="q2_k",
            on_progress=cancel,
        )
    assert seen.is_set()
