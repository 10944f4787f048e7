"""Which of ONNX Runtime's wheels is loaded, because they overwrite each other: the same files under several names.

`onnxruntime`, `onnxruntime-gpu`, `onnxruntime-openvino`, `onnxruntime-directml` and their like all install a package
`onnxruntime`. To pip they are different distributions: it installs both, the last one's files win, and removing one
takes files of the other away. So what each says that it installed is held against what lies there.

Imports nothing of ONNX Runtime: of a broken mixture that may fail in any way.
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from importlib.metadata import Distribution
from importlib.util import find_spec
from pathlib import Path

from edgecore.contract import BackendUnavailable

PACKAGE = "onnxruntime"
_NAMES = re.compile(r"(onnxruntime|ort[_.-]nightly)([_.-].*)?", re.I)
_CODE = (".so", ".pyd", ".dll", ".dylib")


@dataclass(frozen=True, slots=True)
class Wheel:
    """A distribution that says that it installed the package."""

    name: str
    version: str
    differs: str
    """The first of its files that is missing or has another size; empty where all are as it brought them."""

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def check_installation() -> None:
    """Raises `BackendUnavailable`, with the command that mends it, unless all code of the package is of one wheel."""
    spec = find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise BackendUnavailable(f"the package {PACKAGE} is not installed", hint=_command(f"{PACKAGE}"))
    found = wheels(Path(places[0]).parent)
    known = next((w.version for w in found if w.name == PACKAGE), None)
    if not found or any(not w.differs and known in (None, w.version) for w in found):
        return  # Of what no installer wrote down (conda, a build of one's own) nothing is known.
    wrong = next(w for w in found if known in (None, w.version))
    mixed = (
        f"{' and '.join(map(str, found))} are installed over each other" if len(found) > 1 else f"{found[0]} is broken"
    )
    raise BackendUnavailable(
        f"{mixed}: {wrong.differs} is not what {wrong} brought",
        supported=f"{PACKAGE} alone",
        hint=_command(f"{PACKAGE}=={known}" if known else PACKAGE, [w.name for w in found if w.name != PACKAGE]),
    )


def wheels(folder: Path) -> list[Wheel]:
    """Those in an interpreter's folder of packages that brought the package, by name."""
    found = []
    for info in sorted(folder.glob("*.dist-info")):
        if _NAMES.fullmatch(info.name.partition("-")[0]):
            wheel = _wheel(Distribution.at(info), folder)
            found += [wheel] if wheel else []
    return found


def _wheel(given: Distribution, folder: Path) -> Wheel | None:
    code = [f for f in given.files or () if f.parts[0] == PACKAGE and (_is_code(f.name) or f.name == "__init__.py")]
    if not code:
        return None
    differing = (str(file) for file in code if not _same(folder / file, file.size))
    return Wheel(given.name.lower().replace("_", "-"), given.version, next(differing, ""))


def _is_code(name: str) -> bool:
    return name.endswith(_CODE) or ".so." in name


def _same(file: Path, size: int | None) -> bool:
    try:
        return size in (None, file.stat().st_size)
    except OSError:
        return False


def _command(requirement: str, others: list[str] | None = None) -> str:
    python = shlex.quote(sys.executable)
    if find_spec("pip"):
        remove, install = f"{python} -m pip uninstall -y", f"{python} -m pip install --force-reinstall --no-deps"
    else:
        remove, install = (
            f"uv pip uninstall --python {python}",
            f"uv pip install --python {python} --reinstall --no-deps",
        )
    removed = f"{remove} {shlex.join(others)} && " if others else ""
    return f"{removed}{install} {shlex.quote(requirement)}"
