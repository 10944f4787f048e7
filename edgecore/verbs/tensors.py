"""Tensor models on the command line: named arrays in one .npz, named arrays out in another."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.contract.errors import BadRequest, CorruptModel, DoesNotFit, ModelNotFound
from edgecore.contract.sessions import TensorSession
from edgecore.verbs.opening import Runnable, open_session


def read_feeds(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays by input name. Raises `ModelNotFound`, `CorruptModel` for anything but an .npz without pickles."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise ModelNotFound(f"{path} does not exist", supported="an .npz file, one array an input") from None
    except (ValueError, EOFError, OSError, AttributeError, zipfile.BadZipFile) as error:
        raise CorruptModel(f"{path} is not an .npz file: {error}", supported="what numpy.savez writes") from error


def run_feeds(
    runnable: Runnable,
    inputs: Path,
    out: Path,
    *,
    threads: int | None = None,
    deadline: float | None = None,
    ran: Callable[[TensorSession], None] = lambda session: None,
) -> dict[str, str]:
    """Run once and write the outputs; the file appears whole or not at all. Answers dtype and shape by output name;
    `ran` gets the session afterwards."""
    feeds = read_feeds(inputs)
    session = open_session(runnable, threads=threads, deadline=deadline)
    if not isinstance(session, TensorSession):
        session.close()
        raise BadRequest(f"{runnable.artifact.path} is not a tensor model", hint="edgecore run MODEL -p PROMPT")
    with session:
        outputs = session(feeds)
        ran(session)
    partial = out.with_name(f".{out.name}.{os.getpid()}.npz")
    try:
        np.savez(partial, **outputs)  # type: ignore[arg-type]
        os.replace(partial, out)
    except OSError as error:
        raise DoesNotFit(f"{out}: {error.strerror or error}", supported="a folder that can be written to") from error
    finally:
        partial.unlink(missing_ok=True)
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in outputs.items()}
