"""What a tensor session costs above its runtime's own call: both in this process, on the same model, call by call in
turn. What the scripts of the runtimes share (`openvino_tensor_latency.py`, `onnxruntime_tensors.py`).

Ends with 1 where the session's median is above 1.03 x bare + 50 microseconds. Symbolic dimensions are fed at size 1
unless --shape says otherwise.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgecore
from edgecore.contract import EdgecoreError, TensorSession
from edgecore.sources import resolve

FACTOR, EXTRA = 1.03, 50e-6
SECONDS, LEAST = 6.0, 30
"""For a model, and rounds at least."""
Models = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Paths, or sources, with the shapes of their inputs."""
MODELS: Models = {
    "pypi:magika==1.0.3": {"bytes": (1, 2048)},
    "pypi:silero-vad==6.2.3/silero_vad/data/silero_vad_openvino_16k.onnx": {},
    "pypi:rapidocr==3.10.0/rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx": {"x": (1, 3, 48, 192)},
    "pypi:rapidocr==3.10.0/rapidocr/models/PP-OCRv6_det_small.onnx": {"x": (1, 3, 320, 320)},
}
Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Row:
    """One model's medians, in seconds."""

    name: str
    bare: float
    session: float
    rounds: int

    @property
    def holds(self) -> bool:
        return self.session <= FACTOR * self.bare + EXTRA

    def line(self) -> str:
        return (
            f"| {self.name} | {self.bare * 1e6:.1f} | {self.session * 1e6:.1f} | {self.session / self.bare:.3f} | "
            f"{(self.session - self.bare) * 1e6:+.1f} | {self.rounds} | {'yes' if self.holds else 'NO'} |"
        )


Bare = Callable[[Path, int], Callable[[Feeds], Iterable[NDArray[Any]]]]
"""A file and threads: the runtime's own call."""


def feeds_for(session: TensorSession, shapes: Mapping[str, tuple[int, ...]]) -> Feeds:
    """Normal numbers, or small integers, at the given shapes."""
    draw, made = np.random.default_rng(1), {}
    for spec in session.inputs:
        shape = shapes.get(spec.name, tuple(size if isinstance(size, int) else 1 for size in spec.shape))
        floats = np.dtype(spec.dtype).kind == "f"
        made[spec.name] = (draw.standard_normal(shape) if floats else draw.integers(0, 2, shape)).astype(spec.dtype)
    return made


def measure(
    name: str,
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    threads: int,
    backend: str,
    opened: Bare,
    **options: Any,
) -> Row:
    bare = opened(path, threads)
    session = edgecore.open(path, backend=backend, isolated=False, threads=threads, options=options)
    assert isinstance(session, TensorSession)
    with session:
        feeds = feeds_for(session, shapes)
        same(bare(feeds), session(feeds))
        arms: dict[str, Callable[[], Any]] = {"bare": lambda: bare(feeds), "session": lambda: session(feeds)}
        taken: dict[str, list[float]] = {arm: [] for arm in arms}
        end, rounds = time.perf_counter() + SECONDS, 0
        while rounds < LEAST or time.perf_counter() < end:
            for arm in ("bare", "session", "session", "bare"):
                start = time.perf_counter()
                arms[arm]()
                taken[arm].append(time.perf_counter() - start)
            rounds += 1
    warm = rounds // 10
    return Row(name, *(statistics.median(taken[arm][warm:]) for arm in ("bare", "session")), rounds)


def same(bare: Iterable[NDArray[Any]], answer: Feeds) -> None:
    """Both arms compute the same, or their times say nothing."""
    for left, right in zip(bare, answer.values(), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


def shapes_of(values: list[str]) -> dict[str, tuple[int, ...]]:
    parts = (value.rpartition("=") for value in values)
    return {name: tuple(int(size) for size in sizes.split(",")) for name, _, sizes in parts}


def main(
    about: str | None,
    backend: str,
    opened: Bare,
    tiny: Callable[[Path], Path],
    made: Callable[[Path], Models] | None = None,
    **options: Any,
) -> int:
    """`tiny` writes a graph so small that what is left is the call itself; `made` writes models for a runtime that
    takes none of the package index's."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="*", help="a path, or pypi:DIST/FILE")
    parser.add_argument("--shape", action="append", default=[], metavar="INPUT=N,N,...")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--offline", action="store_true")
    given = parser.parse_args()
    wanted: dict[str, Mapping[str, tuple[int, ...]]] = {name: shapes_of(given.shape) for name in given.model}
    print("| model | bare, us | session, us | ratio | more, us | rounds | within |\n|---|---|---|---|---|---|---|")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if not given.model:
            rows.append(measure("tiny, 64 x 64", tiny(Path(folder)), {}, given.threads, backend, opened, **options))
            print(rows[-1].line(), flush=True)
            wanted = dict(made(Path(folder)) if made else MODELS)
        for name, shapes in wanted.items():
            try:
                path = Path(name) if Path(name).is_file() else resolve(name, offline=given.offline).path
            except EdgecoreError as error:
                print(f"{name}: {error}", file=sys.stderr)
                continue
            rows.append(measure(name.rpartition("/")[2], path, shapes, given.threads, backend, opened, **options))
            print(rows[-1].line(), flush=True)
    return 0 if rows and all(row.holds for row in rows) else 1
