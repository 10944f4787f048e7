"""Convert writes a folder that mlx_lm reads as it is, streams the weights, and says what it could not do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgecore.checkpoint import folder_decoder, open_checkpoint
from edgecore.contract import Cancelled, ConvertLimits, CorruptModel, DoesNotFit, UnsupportedModel, UnsupportedPrecision
from edgecore_mlx import folder

from support.gguf_files import write_gguf
from support.peak import run_measured
from support.tiny import tiny_llama

CONVERT = (
    "import sys; from pathlib import Path; from edgecore.checkpoint import open_checkpoint\n"
    "from edgecore.contract import ConvertLimits, DoesNotFit, no_progress\n"
    "from edgecore_mlx.convert_text import convert\n"
)


@pytest.mark.parametrize(("precision", "bits"), [("f32", 32), ("f16", 16), ("bf16", 16)])
def test_every_precision_is_what_it_says_in_every_tensor(
    mlx: Any, tiny: Path, tmp_path: Path, precision: str, bits: int
) -> None:
    made = mlx.convert(tiny, tmp_path / "out", precision)
    stored = folder.tensors(tmp_path / "out")
    assert {array.dtype for array in stored.values()} == {precision.upper()}
    with open_checkpoint(tiny) as model:
        assert {name: array.shape for name, array in stored.items()} == model.decoder.shapes()
        assert made.weights.parameters == model.parameters
        assert folder_decoder(tmp_path / "out") == model.decoder
    assert made.weights.bits_per_weight == made.weights.eligible_bits_per_weight == bits
    assert made.weights.fallbacks == made.notes == ()
    assert {file.path: file.role for file in made.files} == {
        "model.safetensors": "weights",
        "model.safetensors.index.json": "config",
        "config.json": "config",
        "generation_config.json": "config",
        "chat_template.jinja": "tokenizer",
        "tokenizer.json": "tokenizer",
        "tokenizer_config.json": "tokenizer",
    }
    assert sorted(file.path for file in made.files) == sorted(p.name for p in (tmp_path / "out").iterdir())


def test_an_untied_head_is_a_matrix_of_its_own(mlx: Any, tmp_path: Path) -> None:
    mlx.convert(tiny_llama(tmp_path / "hf", tied=False), tmp_path / "out")
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= folder.tensors(tmp_path / "out").keys()


def test_the_same_request_gives_the_same_bytes(mlx: Any, tiny: Path, tmp_path: Path) -> None:
    """In one process, and in another, whose hashes differ."""
    with open_checkpoint(tiny) as model:
        source = write_gguf(model, tmp_path / "tiny.gguf", "Q5_1")
    mlx.convert(source, tmp_path / "a")
    mlx.convert(source, tmp_path / "b")
    code = CONVERT + (
        "source, out = map(Path, sys.argv[1:]); out.mkdir()\n"
        "with open_checkpoint(source) as model: convert(model, out, 'f16', {}, ConvertLimits(), no_progress)\n"
    )
    subprocess.run([sys.executable, "-c", code, source, tmp_path / "c"], check=True)
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert len(names) == 7
    for name in names:
        first = (tmp_path / "a" / name).read_bytes()
        assert first == (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes(), name


@pytest.mark.parametrize("storage", ["", "Q8_0"])
def test_memory_does_not_grow_with_the_model(tmp_path: Path, storage: str) -> None:
    """A layer has 16 MB here as float32."""
    pytest.importorskip("resource", reason="needs Unix, whose way peak memory is read")
    code = CONVERT + (
        "with open_checkpoint(Path(sys.argv[1])) as model:\n"
        "    before, out = peak(), Path(sys.argv[2]); out.mkdir()\n"
        "    convert(model, out, 'f32', {}, ConvertLimits(), no_progress)\n"
        "    print(peak() - before)\n"
    )
    grown = []
    for layers in (2, 10):
        source = tiny_llama(tmp_path / f"{layers}", layers=layers, hidden=512, heads=8, intermediate=2048)
        if storage:
            with open_checkpoint(source) as model:
                source = write_gguf(model, tmp_path / f"{layers}.gguf", storage)
        grown.append(int(run_measured(code, source, tmp_path / f"out{layers}")))
    assert grown[1] < 60e6
    assert grown[1] - grown[0] < 8e6


def test_progress_counts_bytes_to_the_end_and_can_cancel(mlx: Any, tiny: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    mlx.convert(tiny, tmp_path / "out", progress=lambda done, total, stage="": seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == pytest.approx((tmp_path / "out/model.safetensors").stat().st_size, rel=0.01)

    def cancel(done: int, total: int, stage: str = "") -> None:
        if done > total / 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        mlx.convert(tiny, tmp_path / "cancelled", progress=cancel)
    assert not list((tmp_path / "cancelled").iterdir())


def test_what_cannot_be_done_is_refused(mlx: Any, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(DoesNotFit, match="trained for 512"):
        mlx.convert(tiny, tmp_path / "a", limits=ConvertLimits(max_context=513))
    with pytest.raises(UnsupportedModel, match="gguf"):
        mlx.convert(tiny, tmp_path / "b", format="gguf")
    with pytest.raises(UnsupportedPrecision, match="'q4'") as caught:
        mlx.convert(tiny, tmp_path / "c", "q4")
    assert caught.value.supported == "f32, f16, bf16"


@pytest.mark.parametrize(("value", "error"), [(1e6, UnsupportedPrecision), (np.nan, CorruptModel)])
def test_numbers_that_the_type_cannot_hold_are_refused_by_name(
    mlx: Any, tmp_path: Path, value: float, error: type[Exception]
) -> None:
    source = tiny_llama(tmp_path / "hf", dtype="F32")
    weights = load_file(source / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, source / "model.safetensors")
    with pytest.raises(error, match=r"model\.layers\.0\.mlp\.up_proj\.weight"):
        mlx.convert(source, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    if error is UnsupportedPrecision:
        for wide in ("f32", "bf16"):
            assert mlx.convert(source, tmp_path / wide, wide).weights


def test_a_full_disk_is_said_and_leaves_no_weights(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="needs Unix, which limits the size of files")
    code = CONVERT + (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)\n"
        "with open_checkpoint(Path(sys.argv[1])) as model:\n"
        "    try: convert(model, Path(sys.argv[2]), 'f16', {}, ConvertLimits(), no_progress)\n"
        "    except DoesNotFit as error: print(error.what)\n"
    )
    for limit in (1_000_000, 100):
        out = tmp_path / str(limit)
        out.mkdir()
        command = [sys.executable, "-c", code, str(tiny), str(out), str(limit)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert "File too large" in done.stdout, done.stderr
        assert not list(out.iterdir())


def test_the_source_of_a_conversion_is_left_as_it_was(mlx: Any, tiny: Path, tmp_path: Path) -> None:
    before = {p.name: p.read_bytes() for p in tiny.iterdir()}
    mlx.convert(tiny, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in tiny.iterdir()} == before


def test_the_index_says_sizes_as_mlx_lm_does(mlx: Any, tiny: Path, tmp_path: Path) -> None:
    made = mlx.convert(tiny, tmp_path / "out")
    index = json.loads((tmp_path / "out" / folder.INDEX).read_text())
    parameters = made.weights.parameters
    assert index["metadata"] == {"total_parameters": parameters, "total_size": 2 * parameters}
    assert list(index["weight_map"]) == sorted(index["weight_map"])
    assert set(index["weight_map"].values()) == {"model.safetensors"}
