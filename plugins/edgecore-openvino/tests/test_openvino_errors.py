"""Damaged, foreign and too large models are typed errors that name file and field, never an end of the process."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from edgecore.contract import BadRequest, CorruptModel, DoesNotFit, EdgecoreError, ModelNotFound, UnsupportedModel
from edgecore_openvino import runtime

BYTES = 8 * 8 * 4
Damage = Callable[[str], str]


@pytest.fixture
def ir(tmp_path: Path) -> Path:
    """relu(x @ w): an .xml of some kilobytes and a .bin of `BYTES`."""
    x = op.parameter([-1, 8], np.float32, name="x")
    w = op.constant(np.arange(64, dtype=np.float32).reshape(8, 8))
    path = tmp_path / "model.xml"
    ov.save_model(ov.Model([op.relu(op.matmul(x, w, False, False))], [x], "small"), path, compress_to_fp16=False)
    return path


def swap(old: str, new: str) -> Damage:
    def damage(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return damage


def test_a_sound_pair_is_read(ir: Path) -> None:
    assert ir.with_suffix(".bin").stat().st_size == BYTES
    assert [port.any_name for port in runtime.read_model(ir).inputs] == ["x"]


@pytest.mark.parametrize(
    ("damage", "kind", "named"),
    [
        (lambda text: text[: len(text) // 2], CorruptModel, "model.xml"),
        (lambda text: "", CorruptModel, "<net version"),
        (lambda text: "hello", CorruptModel, "<net version"),
        (lambda text: "GGUF\0\0", CorruptModel, "<net version"),
        (swap(' version="11"', ""), CorruptModel, "<net version"),
        (swap('version="11"', 'version="12"'), UnsupportedModel, r'version="12".*newer'),
        (swap('version="11"', 'version="4"'), UnsupportedModel, r'version="4".*older'),
        (swap('version="opset1"', 'version="opset99"'), UnsupportedModel, "opset99"),
        (swap('type="MatMul" version="opset1"', 'type="MatMul" version="opset17"'), UnsupportedModel, "opset17"),
        (swap('type="ReLU"', 'type="FluxCapacitor"'), UnsupportedModel, "FluxCapacitor"),
        (swap('offset="0"', 'offset="9999"'), CorruptModel, r"model.bin.*256.*10,255"),
        (swap('offset="0"', 'offset="-5"'), CorruptModel, "offset"),
        (swap(f'size="{BYTES}"', 'size="18446744073709551615"'), CorruptModel, "speaks of 18,446,744,073,709,551,615"),
        (swap(f'size="{BYTES}"', f'size="{10**30}"'), CorruptModel, "speaks of 1,000,000,000,000,000,000,"),
        (swap('shape="8, 8"', 'shape="80000, 80000"'), CorruptModel, "shape size"),
        (swap('shape="8, 8"', 'shape="-8, 8"'), CorruptModel, "model.xml"),
        (swap('shape="8, 8"', 'shape="a, b"'), CorruptModel, "'a'"),
        (swap('element_type="f32"', 'element_type="f99"'), CorruptModel, "f99"),
        (swap('precision="FP32"', 'precision="FP99"'), CorruptModel, "FP99"),
        (lambda text: re.sub("<edges>.*</edges>", "", text, flags=re.S), CorruptModel, "model.xml"),
        (swap('from-layer="0"', 'from-layer="2"'), CorruptModel, "node 2"),
        (swap('to-port="0"', 'to-port="77"'), CorruptModel, "77"),
        (lambda text: '<net name="x" version="11"/>', CorruptModel, "no output"),
        (
            lambda text: '<net version="11">' + "<layers>" * 50_000 + "</layers>" * 50_000 + "</net>",
            CorruptModel,
            "out",
        ),
        (
            lambda text: (
                '<!DOCTYPE a [<!ENTITY b "b">'
                + "".join(f'<!ENTITY b{i} "{f"&b{i - 1 or str()};" * 10}">' for i in range(1, 12))
                + ']><net name="&b11;" version="11"/>'
            ),
            CorruptModel,
            "no output",
        ),
    ],
)
def test_a_damaged_xml_is_named_with_what_is_wrong_in_it(
    ir: Path, damage: Damage, kind: type[EdgecoreError], named: str
) -> None:
    ir.write_text(damage(ir.read_text()))
    with pytest.raises(kind, match=named) as caught:
        runtime.read_model(ir)
    assert str(ir.with_suffix("")) in caught.value.what, "the file is named"


@pytest.mark.parametrize(
    ("content", "named"),
    [(None, "is missing"), (b"", "0 bytes"), (bytes(BYTES // 2), "truncated"), (bytes(BYTES + 100), "another model")],
)
def test_weights_that_are_not_this_models_are_refused(ir: Path, content: bytes | None, named: str) -> None:
    weights = ir.with_suffix(".bin")
    weights.unlink() if content is None else weights.write_bytes(content)
    with pytest.raises(CorruptModel, match=named) as caught:
        runtime.read_model(ir)
    assert str(weights) in caught.value.what


def test_names_that_are_no_utf_8_are_refused_where_they_are_read(ir: Path) -> None:
    ir.write_bytes(ir.read_bytes().replace(b'names="x"', b'names="\xe9"'))
    with pytest.raises(CorruptModel, match=r"byte \d+ is no UTF-8"):
        runtime.read_model(ir)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"absent\.xml"):
        runtime.read_model(tmp_path / "absent.xml")
    (tmp_path / "folder.xml").mkdir()
    with pytest.raises(CorruptModel, match=r"folder\.xml: cannot be read"):
        runtime.read_model(tmp_path / "folder.xml")


def test_an_ir_of_a_newer_openvino_names_that_version(ir: Path) -> None:
    text = ir.read_text().replace(ov.__version__, "2031.2.0-1-abc").replace("opset1", "opset99")
    ir.write_text(text)
    with pytest.raises(UnsupportedModel, match=r"written by OpenVINO 2031\.2\.0") as caught:
        runtime.read_model(ir)
    assert runtime.VERSION in caught.value.supported


def test_a_model_larger_than_free_memory_is_refused_before_it_is_read(
    ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "usable_memory", lambda: (1 << 30, BYTES - 1))
    with pytest.raises(DoesNotFit, match="memory are free") as caught:
        runtime.read_model(ir)
    assert caught.value.hint


@pytest.mark.parametrize("seed", range(8))
def test_bytes_changed_at_random_end_in_a_model_or_in_a_typed_error(ir: Path, seed: int) -> None:
    rng = random.Random(seed)
    sound = ir.read_bytes()
    for _ in range(25):
        text = bytearray(sound)
        for _ in range(rng.choice((1, 3, 20))):
            text[rng.randrange(len(text))] = rng.choice(b'0123456789abcZ"<>/= \0\xff')
        ir.write_bytes(text)
        with suppress(EdgecoreError):  # and nothing else: no RuntimeError of the runtime, no end of the process
            runtime.compile_model(runtime.read_model(ir), "cpu", {"INFERENCE_NUM_THREADS": 1})


def test_an_operator_that_the_device_lacks_is_a_model_that_it_does_not_take(ir: Path) -> None:
    model = runtime.read_model(ir)
    with pytest.raises(BadRequest, match="NO_SUCH"):
        runtime.compile_model(model, "cpu", {"NO_SUCH": "1"})
    ir.write_text(ir.read_text().replace('shape="8, 8"', 'shape="9223372036854775807, 9223372036854775807"'))
    with pytest.raises(UnsupportedModel, match="cpu cannot compile the model"):
        runtime.compile_model(runtime.read_model(ir), "cpu", {})


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("std::bad_alloc", DoesNotFit),
        ("[GPU] CL_OUT_OF_RESOURCES", DoesNotFit),
        ("[GPU] Exceeded max size of memory object allocation", DoesNotFit),
        ("L0 pfnCreate2 result: ZE_RESULT_ERROR_OUT_OF_DEVICE_MEMORY", DoesNotFit),
        ('Device with "TPU" name is not registered in the OpenVINO Runtime', "DeviceUnavailable"),
        ("Unsupported property NO_SUCH by CPU plugin.", BadRequest),
        ("Operation FluxCapacitor is not supported", UnsupportedModel),
    ],
)
def test_what_a_device_says_when_it_fails_becomes_the_error_of_its_kind(
    ir: Path, monkeypatch: pytest.MonkeyPatch, said: str, kind: type[EdgecoreError] | str
) -> None:
    """GPUs and NPUs are not where the tests run; what they say is."""
    model = runtime.read_model(ir)

    class Core:
        available_devices = ("CPU",)

        def compile_model(self, *_: object) -> None:
            raise RuntimeError(f"Exception from src/inference/src/cpp/core.cpp:117:\n{said}\n\n")

    monkeypatch.setattr(runtime, "core", Core)
    with pytest.raises(EdgecoreError, match=re.escape(said.partition(" by ")[0])) as caught:
        runtime.compile_model(model, "cpu", {})
    assert type(caught.value).__name__ == (kind if isinstance(kind, str) else kind.__name__)
