"""The runtime's source package: it carries all of llama.cpp, the converter and the measuring tools included.

Fetched with pip, so that the user's index configuration holds, and unpacked once. Standard library only: the exporter's
environment has no llama-cpp-python.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import platformdirs

from edgecore.contract import BackendUnavailable

RUNTIME = "0.3.36"
"""The release of llama-cpp-python that this plugin was written for."""


def cache_folder() -> Path:
    """Where edgecore keeps what can be fetched again."""
    home = os.environ.get("EDGECORE_HOME") or platformdirs.user_cache_dir("edgecore", appauthor=False)
    return Path(home) / "sources"


def llama_cpp(folder: Path | None = None, sdist: Path | None = None) -> Path:
    """The folder of llama.cpp's sources, fetched and unpacked where it is missing.

    folder: where to unpack; None means edgecore's own cache. sdist: a package that was fetched already.
    Raises `BackendUnavailable`.
    """
    parent = folder or cache_folder()
    unpacked = parent / f"llama_cpp_python-{RUNTIME}" / "vendor" / "llama.cpp"
    if unpacked.is_dir():
        return unpacked
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix="unpacking-") as name:
        temporary = Path(name)
        with tarfile.open(sdist or _download(temporary)) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 and later
            archive.extractall(temporary)
        top = temporary / f"llama_cpp_python-{RUNTIME}"
        if not (top / "vendor" / "llama.cpp").is_dir():
            raise BackendUnavailable(f"{sdist or 'the package'} does not hold llama-cpp-python {RUNTIME} and llama.cpp")
        try:
            top.rename(parent / top.name)
        except OSError:  # another process was faster
            if not unpacked.is_dir():
                raise
            shutil.rmtree(top)
    return unpacked


def _download(folder: Path) -> Path:
    """pip asks the package for its metadata on the way, which installs its build system for a moment: a minute."""
    requirement = f"llama-cpp-python=={RUNTIME}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
    done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    found = sorted(folder.glob("*.tar.gz"))
    if done.returncode or not found:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise BackendUnavailable(f"the source package {requirement} could not be fetched: {lines[-1] if lines else ''}")
    return found[0]
