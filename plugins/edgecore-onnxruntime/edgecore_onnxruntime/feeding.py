"""A folder of .npz feeds as ONNX Runtime's calibrators read it: one feed at a time, so that the folder may be larger
than the memory."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader

from edgecore.contract import BadRequest, Progress, TensorSpec, check_feeds

Feeds = Mapping[str, NDArray[Any]]


class Feeding(CalibrationDataReader):  # type: ignore[misc]
    """The files in the order of their names, `count` at most (0: all), spread over the folder."""

    def __init__(self, folder: Path, inputs: tuple[TensorSpec, ...], count: int, progress: Progress) -> None:
        """Every file is read and checked once before anything is computed. Raises `BadRequest` naming the file."""
        files = sorted(folder.glob("*.npz")) if folder.is_dir() else []
        if not files:
            raise BadRequest(
                f"calibration data {folder}: no .npz files",
                supported="a folder of .npz files, in each one array an input",
            )
        if count and count < len(files):
            files = [files[round(i * (len(files) - 1) / max(count - 1, 1))] for i in range(count)]
        self._files, self._inputs, self._progress = files, inputs, progress
        self.sizes: dict[str, set[int]] = {}
        """Sizes that each symbolic dimension has in the feeds."""
        for file in files:
            for spec, feed in ((spec, self._read(file)[spec.name]) for spec in inputs):
                for dim, size in zip(spec.shape, feed.shape, strict=True):
                    if isinstance(dim, str):
                        self.sizes.setdefault(dim, set()).add(size)
        self.set_range(0, len(files))

    def __len__(self) -> int:
        return len(self._files)

    def set_range(self, start_index: int, end_index: int) -> None:
        """What `get_next` goes through."""
        self._at, self._end = start_index, end_index

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        if self._at >= self._end:
            return None
        self._progress(self._at, len(self._files), "calibrating")
        self._at += 1
        return dict(self._read(self._files[self._at - 1]))

    def _read(self, file: Path) -> Feeds:
        try:
            with np.load(file, allow_pickle=False) as archive:
                feeds = {name: archive[name] for name in archive.files}
            check_feeds(self._inputs, feeds)
            _check_ranges(feeds)
        except BadRequest as error:
            raise BadRequest(f"calibration data {file}: {error.what}", supported=error.supported) from None
        except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise BadRequest(
                f"calibration data {file}: is not an .npz file: {error}", supported="what numpy.savez writes"
            ) from None
        return feeds


def _check_ranges(feeds: Feeds) -> None:
    """A calibrator takes what has no range too, and the model would answer nonsense."""
    for name, feed in feeds.items():
        if not feed.size:
            raise BadRequest(f"input {name!r} is empty, which shows no range", supported="at least one number")
        if feed.dtype.kind == "f" and not np.isfinite(feed).all():
            raise BadRequest(f"input {name!r} holds numbers that are not finite", supported="finite numbers")
