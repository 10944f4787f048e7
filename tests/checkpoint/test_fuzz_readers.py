"""Both readers, and 100,000 damaged headers each: whatever the bytes, a header that holds or a typed error.

From a fixed seed, so that a failure is one that everybody has. What must hold stands in `support.fuzz_targets`.
"""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Callable

import pytest
import safetensors as library

from support import fuzz_targets
from support.mutations import damaged_gguf, damaged_safetensors, gguf_seeds, safetensors_seeds

ROUNDS = 5
EACH = 20_000


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_damaged_gguf_headers_are_refused_or_hold(seed: int) -> None:
    draw, seeds = random.Random(seed), gguf_seeds()
    assert all(fuzz_targets.gguf(good.data) for good in seeds)
    accepted = _run(lambda: damaged_gguf(draw, seeds), fuzz_targets.gguf)
    assert EACH * 0.05 < accepted < EACH * 0.5


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_damaged_safetensors_headers_are_refused_or_hold_and_the_library_agrees(seed: int) -> None:
    draw, seeds = random.Random(seed), safetensors_seeds()
    assert all(fuzz_targets.safetensors(good) for good in seeds)

    def check(data: bytes) -> bool:
        accepted = fuzz_targets.safetensors(data)
        assert accepted <= _library_accepts(data), "the library refuses what is accepted"
        return accepted

    accepted = _run(lambda: damaged_safetensors(draw, seeds), check)
    assert EACH * 0.05 < accepted < EACH * 0.5


def _run(damage: Callable[[], bytes], check: Callable[[bytes], bool]) -> int:
    """How many were accepted; none may take a second of the processor or more memory than its size explains."""
    accepted, watched = 0, random.Random(0)
    for _ in range(EACH):
        data = damage()
        begin = time.process_time()
        if watched.random() < 0.04:
            tracemalloc.start()
            try:
                accepted += check(data)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert peak < (1 << 20) + 64 * len(data), data
        else:
            accepted += check(data)
        assert time.process_time() - begin < 1, data
    return accepted


def _library_accepts(data: bytes) -> bool:
    try:
        library.deserialize(data)  # type: ignore[no-untyped-call]
    except library.SafetensorError:
        return False
    return True
