"""What a manifest answers about a task, a precision and a device: what is made is what is claimed for all three."""

from __future__ import annotations

import pytest

from edgecore.contract.errors import BadRequest
from edgecore.contract.manifest import Manifest, parse
from edgecore.contract.options import resolve

MANIFEST = {
    "name": "two",
    "title": "Two",
    "summary": "A CPU and an NPU, each with formats and precisions of its own",
    "contract": "1.0",
    "hooks": "two.hooks",
    "distribution": "edgecore-two",
    "runtime": {"distribution": "two"},
    "sources": ["huggingface", "onnx"],
    "devices": [{"name": "cpu"}, {"name": "npu"}, {"name": "gpu"}],
    "formats": [
        {"name": "opened", "task": "text"},
        {"name": "plain", "task": "text"},
        {"name": "static", "task": "text"},
        {"name": "onnx", "task": "tensor"},
    ],
    "precisions": [
        {"name": "f32", "bits": 32},
        {"name": "f16", "bits": 16},
        {"name": "int4", "bits": 4},
        {"name": "a16w8", "bits": 8},
        {"name": "static8", "bits": 8},
        {"name": "promised", "bits": 2},
    ],
    "claims": [
        {"task": "text", "families": ["llama"], "formats": ["plain"], "precisions": ["f32", "f16", "int4"],
         "devices": ["cpu"]},
        {"task": "text", "families": ["llama"], "formats": ["static"], "precisions": ["f16", "a16w8"],
         "devices": ["npu"]},
        {"task": "tensor", "families": ["onnx-opset-21"], "formats": ["onnx"], "precisions": ["f32", "static8"],
         "devices": ["cpu"]},
    ],
}  # fmt: skip


def two() -> Manifest:
    return parse(MANIFEST, "backend.toml")


def test_formats_of_a_task_are_the_claimed_ones_and_not_what_is_only_opened() -> None:
    assert two().formats_of("text") == ("plain", "static")
    assert two().formats_of("tensor") == ("onnx",)
    assert two().formats_of(None) == ("plain", "static", "onnx")


def test_a_precision_and_a_device_choose_the_format_that_claims_both() -> None:
    assert two().formats_of("text", "f16") == ("plain", "static")
    assert two().formats_of("text", "int4") == ("plain",)
    assert two().formats_of("text", "a16w8") == ("static",)
    assert two().formats_of("text", "f16", "npu") == ("static",)
    assert two().formats_of("text", device="npu") == ("static",)


def test_no_format_has_a_precision_on_a_device_where_only_others_are_claimed() -> None:
    assert two().formats_of("text", "int4", "npu") == ()
    assert two().formats_of("text", "a16w8", "cpu") == ()


def test_what_no_claim_names_narrows_nothing() -> None:
    assert two().formats_of("text", "promised", "npu") == ("static",), "a precision without a claim"
    assert two().formats_of("text", "f16", "gpu") == ("plain", "static"), "a device without a claim"
    assert two().formats_of("tensor", "f32", "npu") == ("onnx",), "a device without a claim of the task"


def test_precisions_of_a_device_are_those_claimed_there_and_those_claimed_nowhere() -> None:
    def names(task: str | None, device: str | None = None) -> list[str]:
        return [p.name for p in two().precisions_of(task, device)]

    assert names("text") == ["f32", "f16", "int4", "a16w8", "promised"]
    assert names("text", "npu") == ["f16", "a16w8", "promised"]
    assert names("text", "cpu") == ["f32", "f16", "int4", "promised"]
    assert names("tensor", "cpu") == ["f32", "static8", "promised"]
    assert names("text", "gpu") == names("text"), "a device without a claim"
    assert names(None) == [p["name"] for p in MANIFEST["precisions"]]


def with_option(*precisions: str) -> Manifest:
    option = {"name": "block", "type": "int", "default": 32, "precisions": list(precisions)}
    return parse({**MANIFEST, "options": {"quantize": [option]}}, "backend.toml")


def test_an_option_of_some_precisions_is_refused_with_others_and_never_seen_there() -> None:
    declared = with_option("int4").options_of("quantize")
    assert resolve(declared, {"block": 16}, "quantize", "two", "text", "int4") == {"block": 16}
    assert resolve(declared, {}, "quantize", "two", "text", "a16w8") == {}
    with pytest.raises(BadRequest, match="option 'block' of backend 'two' is for int4, and this is a16w8"):
        resolve(declared, {"block": 16}, "quantize", "two", "text", "a16w8")


def test_an_option_of_a_precision_that_is_not_declared_is_an_error_of_the_manifest() -> None:
    with pytest.raises(BadRequest, match="block: precision 'int5' is not declared"):
        with_option("int4", "int5")
