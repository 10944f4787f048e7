"""Memory of the device: refused before it is read, wired while it is needed, given back."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from edgecore.contract import BadRequest, DoesNotFit, Manifest
from edgecore.contract.options import resolve
from edgecore_mlx import memory

GIB = 2**30


def test_on_a_cpu_free_memory_is_what_a_container_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "usable_memory", lambda: (8 * GIB, 2 * GIB))
    memory.check_fits(2 * GIB, "cpu")
    with pytest.raises(DoesNotFit, match=r"the model: 2\.0 GiB, and 2\.0 GiB of memory are free") as caught:
        memory.check_fits(2 * GIB + 1, "cpu")
    assert "precision with fewer bits" in caught.value.hint
    with pytest.raises(DoesNotFit, match=r"weights\.safetensors: 30\.0 GiB"):
        memory.check_fits(30 * GIB, "cpu", "weights.safetensors")


class Metal:
    """MLX's functions as Metal's build answers them: a stand-in, because no Mac is at hand."""

    gpu = mx.gpu

    def __init__(self, info: dict[str, Any], metal: bool = True, active: int = 0) -> None:
        self.metal = SimpleNamespace(is_available=lambda: metal)
        self.limit, self.limits, self.synchronized = 0, [], 0
        self._info, self._active = info, active

    def device_info(self, kind: Any) -> dict[str, Any]:
        return self._info

    def get_active_memory(self) -> int:
        return self._active

    def get_cache_memory(self) -> int:
        return GIB

    def set_wired_limit(self, limit: int) -> int:
        before, self.limit = self.limit, limit
        self.limits.append(limit)
        return before

    def synchronize(self) -> None:
        self.synchronized += 1


APPLE = {"memory_size": 16 * GIB, "max_recommended_working_set_size": 11 * GIB}


def test_on_metal_it_is_what_macos_recommends_less_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "mx", Metal(APPLE, active=4 * GIB))
    memory.check_fits(7 * GIB, "gpu")
    with pytest.raises(DoesNotFit, match=r"7\.0 GiB are left of what the GPU may hold"):
        memory.check_fits(8 * GIB, "gpu")


def test_on_cuda_it_is_what_is_free_and_what_mlx_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "mx", Metal({"total_memory": 24 * GIB, "free_memory": 5 * GIB}, metal=False))
    memory.check_fits(6 * GIB, "gpu")
    with pytest.raises(DoesNotFit, match=r"6\.0 GiB are left"):
        memory.check_fits(6 * GIB + 1, "gpu")


def test_the_wired_limit_is_raised_while_somebody_needs_it_and_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    metal = Metal(APPLE)
    metal.limit = 123
    monkeypatch.setattr(memory, "mx", metal)
    first, second = memory.wired(), memory.wired()
    first.__enter__()
    assert metal.limit == 11 * GIB
    second.__enter__()
    first.__exit__(None, None, None)
    assert metal.limit == 11 * GIB, "another session is still open"
    second.__exit__(None, None, None)
    assert metal.limits == [11 * GIB, 123]
    assert metal.synchronized == 1, "the limit must not change while something is computed"
    with pytest.raises(ValueError, match="stop"), memory.wired():
        raise ValueError("stop")
    assert metal.limit == 123


@pytest.mark.parametrize("info", [{}, {"total_memory": 24 * GIB}])
def test_elsewhere_nothing_is_wired(monkeypatch: pytest.MonkeyPatch, info: dict[str, Any]) -> None:
    other = Metal(info, metal=False)
    monkeypatch.setattr(memory, "mx", other)
    with memory.wired():
        pass
    assert other.limits == []


def test_on_this_machine_wiring_does_no_harm() -> None:
    with memory.wired():
        assert mx.sum(mx.ones(3)).item() == 3


def test_a_limit_of_kept_buffers_is_kept_to() -> None:
    before = mx.set_cache_limit(0)
    mx.set_cache_limit(before)
    try:
        memory.limit({"cache_limit": 4})
        for rows in range(1, 60):
            mx.eval(mx.ones((rows * 100, 200)) + 1)
        gc.collect()
        assert mx.get_cache_memory() <= 4_000_000
        memory.limit({})
        assert mx.set_cache_limit(before) == 4_000_000
    finally:
        mx.set_cache_limit(before)


def test_a_limit_larger_than_mlx_can_count_is_a_bad_request(manifest: Manifest) -> None:
    with pytest.raises(BadRequest, match="cache_limit=9223372036854775807"):
        resolve(manifest.options_of("run"), {"cache_limit": 2**63 - 1}, "run", "mlx")
    most = resolve(manifest.options_of("run"), {"cache_limit": 10**9}, "run", "mlx")
    before = mx.set_cache_limit(0)
    try:
        memory.limit(most)
    finally:
        assert mx.set_cache_limit(before) == 10**15


@pytest.mark.skipif(mx.is_available(mx.gpu), reason="a GPU's limit is another")
def test_a_long_session_on_a_cpu_keeps_at_most_a_few_buffers() -> None:
    """A cache that grows leaves buffers that never fit again: MLX keeps 32 MiB of them and no more."""
    keys = mx.zeros((4, 64, 64))
    for length in range(64, 1600, 16):
        keys = mx.concatenate([keys, mx.ones((4, 16, 64))], axis=1)
        mx.eval(keys, mx.softmax(mx.ones((8, length)), axis=-1))
    assert mx.get_cache_memory() <= 32 << 20


def test_counters_are_mlxs_own() -> None:
    mx.reset_peak_memory()
    held = mx.ones((1000, 1000))
    mx.eval(held)
    found = memory.counters()
    assert found["mlx_active_memory"] >= held.nbytes
    assert found["mlx_peak_memory"] >= held.nbytes
