"""What doctor says to install: each backend that suits the machine and does not work here, once."""

from __future__ import annotations

import pytest

from edgecore.machine import profile
from edgecore.registry import Discovery
from edgecore.verbs import diagnosing


@pytest.mark.parametrize(("name", "wanted"), [("apple-m4", ["mlx", "llamacpp"]), ("intel-lunar-lake", ["openvino"])])
def test_a_backend_that_suits_by_several_devices_is_named_once_for_its_best(
    monkeypatch: pytest.MonkeyPatch, name: str, wanted: list[str]
) -> None:
    monkeypatch.setattr(diagnosing, "match", lambda machine: (profile(name),))
    monkeypatch.setattr(diagnosing.registry, "discover", lambda: Discovery(()))
    found = diagnosing.diagnose().advice
    assert [advice.backend for advice in found][: len(wanted)] == wanted
    assert len({advice.backend for advice in found}) == len(found)
    assert found[0].why == profile(name).suited[0].why
    assert f"edgecore-{wanted[0]}" in found[0].command
