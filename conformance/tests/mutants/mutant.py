"""A mutant: a truthful plugin, one planted fault, and the checks that must see it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

from edgecore_conformance.outcomes import Outcome

PACKAGE = "edgecore_mutant"
_PARTS = Path(__file__).parent / "plugin"

HOOKS = '''\
"""{fault}"""

from dataclasses import replace
from pathlib import Path

import numpy as np

import {base} as truthful
from {base} import *
from edgecore.contract import *

from edgecore_mutant.planting import instead

'''


@dataclass(frozen=True)
class Mutant:
    """One fault. Its plugin is `base` with `hooks` after it, `package` in its `__init__.py`, `manifest` changed."""

    name: str
    fault: str
    """In words."""
    caught_by: tuple[str, ...]
    """Names of checks: one row of each, at least, must end as one of `outcomes`."""
    hooks: str = ""
    """Python that follows the truthful hooks in the hooks module and plants the fault there."""
    manifest: tuple[tuple[str, str], ...] = ()
    """Texts of `backend.toml` with what stands in their place."""
    package: str = ""
    """The top-level package's `__init__.py`."""
    base: str = "reference"
    """`reference`, `quantizer` of language models or of `tensors`, `emulator`: the quantizer with an NPU beside its
    CPU, or `timer`: the reference with a truthful benchmark of its own."""
    outcomes: tuple[Outcome, ...] = (Outcome.FAILED,)
    device: str = "cpu"
    cells: Mapping[str, str] = field(default_factory=dict)
    """Only rows that say so are run: `{"family": "mistral"}`. A fault that one family shows needs no other row."""
    missing: str = ""
    """Which check, or which case of one, would catch it: it survives until there is one."""
    makes: bool = False
    """Its own artifacts are opened: its fault is in convert or quantize. Others open what the truthful plugin made."""
    seconds: float = 0.0
    """A row's deadline, for a mutant that hangs; 0 leaves the check's own."""

    @property
    def group(self) -> str:
        """The group of the check that names it."""
        return self.caught_by[0].partition(".")[0]


TRUTHFUL = {
    base: Mutant(f"truthful_{base}", "none", ("manifest.hooks",), base=base)
    for base in ("reference", "quantizer", "tensors", "emulator", "timer")
}
"""What mutants are made of, without a fault: what catches them must let these pass."""


def write_mutant(mutant: Mutant, folder: Path) -> Path:
    """The mutant as a plugin under development: name it by the answered path."""
    package = folder / PACKAGE
    package.mkdir(parents=True)
    for file in _PARTS.glob("*.py"):
        shutil.copyfile(file, package / file.name)
    (package / "libQnnHtp.so").write_text("What the emulator's plugin has loaded, as far as anybody sees.\n")
    (package / "__init__.py").write_text(dedent(mutant.package), encoding="utf-8")
    base = "edgecore_reference.hooks" if mutant.base == "reference" else f"{PACKAGE}.{mutant.base}"
    text = HOOKS.format(fault=mutant.fault, base=base) + dedent(mutant.hooks)
    (package / "hooks.py").write_text(text, encoding="utf-8")
    (package / "backend.toml").write_text(_manifest(mutant), encoding="utf-8")
    return folder


def _manifest(mutant: Mutant) -> str:
    own = _PARTS / f"{mutant.base}.toml"
    text = own.read_text(encoding="utf-8") if own.exists() else ""
    if not text:
        spec = find_spec("edgecore_reference")
        assert spec is not None
        assert spec.origin is not None
        text = Path(spec.origin).with_name("backend.toml").read_text(encoding="utf-8")
        changes = (
            ('name = "reference"', 'name = "mutant"'),
            ('hooks = "edgecore_reference.hooks"', f'hooks = "{PACKAGE}.hooks"'),
            ('distribution = "edgecore-reference"', 'distribution = "edgecore-mutant"'),
        )
        text = changed(text, changes)
    if mutant.base == "timer":
        text = changed(text, (("native_benchmark = false", "native_benchmark = true"),))
    return changed(text, mutant.manifest)


def changed(text: str, changes: tuple[tuple[str, str], ...]) -> str:
    """Each first text replaced. A text that is not there would plant nothing, so it raises."""
    for old, new in changes:
        if old not in text:
            raise ValueError(f"the manifest has no {old!r}")
        text = text.replace(old, new, 1)
    return text
