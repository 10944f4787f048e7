"""Packs what train_language_model.py made into the suite's data, in less space: a repository is no place for weights.

    python conformance/train/pack_language_model.py OUT

Matrices are rounded to 5 bits of mantissa (a relative error of 1.6 % at most; perplexity moves by a few hundredths) and
kept as two planes of bytes, which compress well: 5.2 MB for 8.9. What comes out again is the fixture: an ordinary
float16 model, and on no grid that a quantizer to 8 bits would hit. Prints the digest for fixtures/language.py.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from edgecore_conformance.fixtures import language, made

DROPPED = 5
"""Of a float16's 10 bits of mantissa."""


def main(out: Path) -> None:
    weights = {name: rounded(w) if w.ndim > 1 else w for name, w in load_file(out / "model.safetensors").items()}
    folder = language.WEIGHTS.parent
    folder.mkdir(parents=True, exist_ok=True)
    with language.WEIGHTS.open("wb") as file:
        np.savez_compressed(file, **{name: planes(weights[name]) for name in sorted(weights)})
    for name in language.BESIDE:
        shutil.copyfile(out / name, folder / name)
    for name in ("held-out.txt", "calibration.txt"):
        shutil.copyfile(out / name, language.DATA / name)
    with tempfile.TemporaryDirectory() as temporary:
        made.write(Path(temporary), language.parts(), language.beside())
        print(json.dumps({"digest": made.digest_of(Path(temporary)), "bytes": language.WEIGHTS.stat().st_size}))


def rounded(weight: NDArray[np.float16]) -> NDArray[np.float16]:
    """To the nearest, halves to even."""
    words = weight.view(np.uint16).astype(np.uint32)
    half = (1 << (DROPPED - 1)) - 1 + (words >> DROPPED & 1)
    return np.asarray((words + half) >> DROPPED << DROPPED).astype(np.uint16).view(np.float16)


def planes(weight: NDArray[np.float16]) -> NDArray[np.uint8]:
    """(2, *shape): high bytes, low bytes."""
    words = weight.view(np.uint16)
    return np.stack([words >> 8, words & 0xFF]).astype(np.uint8)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
