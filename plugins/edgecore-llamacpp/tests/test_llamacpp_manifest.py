"""The manifest says what the code does: precisions, calibration, options."""

from __future__ import annotations

from typing import Any

from edgecore.contract import Manifest, PrecisionClass
from edgecore_llamacpp import metadata, mixes, model
from edgecore_llamacpp.hooks import calibrated


def test_every_precision_has_its_maker(manifest: Manifest) -> None:
    by_verb = {
        verb: {p.name for p in manifest.precisions if p.by in (verb, "both")} for verb in ("convert", "quantize")
    }
    assert by_verb["convert"] == set(metadata.FILE_TYPES)
    assert by_verb["quantize"] == set(mixes.BASE)
    assert by_verb["convert"] & by_verb["quantize"] == {"q8_0"}


def test_every_class_has_one_recommended_precision(manifest: Manifest) -> None:
    for kind in PrecisionClass:
        recommended = [p.name for p in manifest.precisions if p.precision_class is kind and p.recommended]
        assert len(recommended) == 1, (kind, recommended)


def test_libllama_knows_every_mix() -> None:
    for precision in mixes.BASE:
        assert mixes.file_type(precision) > 0


def test_calibration_is_read_from_the_manifest(manifest: Manifest) -> None:
    assert calibrated() == {p.name: p.calibration for p in manifest.precisions}
    assert calibrated()["iq2_xxs"] == "required"
    assert calibrated()["q4_k_m"] == "optional"
    assert calibrated()["tq2_0"] == "none"


def test_options_offer_what_the_code_takes(manifest: Manifest) -> None:
    run = {option.name: option for option in manifest.options_of("run")}
    assert set(run["kv_cache"].choices) == set(model.KV_TYPES)
    assert set(run["flash_attention"].choices) == set(model.FLASH)
    for option in manifest.options_of("quantize"):
        if option.name.endswith("_type"):
            assert [mixes.type_number(str(choice)) for choice in option.choices]


def test_the_probe_tells_devices_versions_and_features(llama: Any) -> None:
    probe = llama.hook.edgecore_probe()
    devices = {device.name: device for device in probe.devices}
    assert devices["cpu"].available
    assert devices["gpu"].available or devices["gpu"].reason
    assert set(probe.versions) == {"llama-cpp-python", "llama.cpp"}
    assert probe.features
