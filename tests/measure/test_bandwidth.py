"""The bandwidth is measured once and then remembered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgecore.measure import bandwidth


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "SECONDS", 0.05)


def test_it_is_plausible_and_its_arrays_exceed_the_caches() -> None:
    found = bandwidth.measured_bandwidth(1)
    assert 1e9 < found.bytes_per_second < 5e12
    assert found.array_bytes >= 4 * bandwidth.last_cache() - 64 or found.array_bytes < bandwidth.ARRAY_BYTES
    assert found.readings >= 3


def test_the_second_call_reads_what_the_first_one_wrote(edgecore_home: Path) -> None:
    first = bandwidth.memory_bandwidth(1)
    file = edgecore_home / "index" / "bandwidth.json"
    data = json.loads(file.read_text())
    (key,) = data
    data[key]["bytes_per_second"] = 2 * first
    file.write_text(json.dumps(data))
    assert bandwidth.memory_bandwidth(1) == 2 * first


def test_a_broken_cache_costs_a_measurement_and_nothing_else(edgecore_home: Path) -> None:
    file = edgecore_home / "index" / "bandwidth.json"
    file.parent.mkdir(parents=True)
    file.write_text("{broken")
    assert bandwidth.memory_bandwidth(1) > 0
