"""Three small checks in the place of the suite's own, so that what is done with rows can be tested in seconds.

They observe a real session of the reference plugin, through workers, as the suite's own do; two more never get there.

    with small_suite():
        bundle = run_small(tmp_path / "bundle")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgecore_conformance.check
import edgecore_conformance.run
import edgecore_conformance.verify
from edgecore.contract.manifest import Manifest
from edgecore_conformance import fixtures
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, Check
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.run import Run

DIGEST = "5" * 64


class Answers(Check):
    """text.answers: the logits of a family's model are the oracle's."""

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        return ({"family": "llama"}, {"family": "qwen3"})

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        tokens = bench.known.tokens(cell["family"], "answers", 6)
        with bench.text_session(cell["family"], context_length=64) as session:
            logits = np.concatenate(list(session.score(tokens)))
        return Observation({"tokens": tokens, "file": str(bench.work / "model")}, {"logits": logits})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        tokens = known.tokens(cell["family"], "answers", 6)
        verdict.expect(seen.facts["tokens"] == tokens, "the tokens are not those that the seed draws")
        apart = np.abs(seen.arrays["logits"] - known.logits(cell["family"], tokens))
        verdict.figure("apart", float(apart.max()), 1e-3, unit="logits", origin="chosen for a test")
        verdict.figure("spread", float(seen.arrays["logits"].std()), unit="logits")


class Bits(Check):
    """quantize.bits: a precision has the bits that the manifest declares."""

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        return tuple({"precision": p.name} for p in manifest.precisions)

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        made = bench.artifact("llama", cell["precision"])
        return Observation({"bytes": sum(f.size for f in made.files if f.path.endswith("safetensors"))})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        bits = next(p.bits for p in known.manifest.precisions if p.name == cell["precision"])
        verdict.figure("MB a bit", seen.facts["bytes"] / 1e6 / bits, 10.0, unit="MB", origin="chosen for a test")


class Nothing(Check):
    """tensor.nothing: applies to no plugin."""

    def applies(self, manifest: Manifest) -> bool:
        return False


class Wrong(Check):
    """text.wrong: asks for more than there is."""

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        return Observation({"value": 3})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        verdict.figure("value", seen.facts["value"], 2, origin="chosen for a test")


class Shaky(Wrong):
    """text.shaky: fails at first, and is good at the third time."""

    times = 0

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        type(self).times += 1
        return Observation({"value": 4 - type(self).times})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        verdict.figure("value", seen.facts["value"], 1, origin="chosen for a test")


GOOD: tuple[type[Check], ...] = (Answers, Bits, Nothing)


@contextmanager
def small_suite(*kinds: type[Check]) -> Iterator[Mapping[str, Check]]:
    """The suite consists of these checks, in this process."""
    checks = {kind.name(): kind() for kind in kinds or GOOD}
    every: Callable[[], dict[str, Check]] = lambda: dict(checks)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        for module in (edgecore_conformance.check, edgecore_conformance.run, edgecore_conformance.verify):
            patch.setattr(module, "all_checks", every)
        patch.setattr(fixtures, "suite_digest", lambda: DIGEST, raising=False)
        yield checks


def run_small(out: Path, only: str = "", backend: str = "reference", **how: Any) -> Run:
    """A finished run of the small suite into a bundle; `only`: rows whose id contains it."""
    run = Run(backend, out=out, **how)
    chosen = [(c, cell) for c, cell in run.pairs() if only in edgecore_conformance.check.row_id(c.name(), cell)]
    run.select(edgecore_conformance.check.row_id(c.name(), cell) for c, cell in chosen)
    for check, cell in chosen:
        run.row(check, cell)
    run.finish()
    return run


PLUGIN = """\
name = "{name}"
title = "The reference, named otherwise"
summary = "For tests"
contract = "1.0"
hooks = "{package}.hooks"
distribution = "edgecore-reference"
sources = ["huggingface"]
reference = true

[runtime]
distribution = "numpy"

[capabilities]
logits = true

[[devices]]
name = "cpu"
emulated = {emulated}

[[formats]]
name = "huggingface"
task = "text"
marker = "config.json"

[[precisions]]
name = "f16"
bits = 16
by = "convert"

[[claims]]
task = "text"
families = ["llama", "qwen3"]
formats = ["huggingface"]
precisions = ["f16"]
devices = ["cpu"]

[[options.convert]]
name = "vectors"
type = "str"
default = "f32"

[[options.run]]
name = "resident"
type = "bool"
default = true

[[options.run]]
name = "chunk"
type = "int"
default = 64
"""


NO_DEVICE = """
from edgecore.contract import Probe, ProbedDevice, hookimpl

@hookimpl
def edgecore_probe():
    return Probe((ProbedDevice("cpu", False, reason="it was taken out"),), {"numpy": "2.0"})
"""
"""Hooks of a plugin whose device is not here."""


def write_plugin(folder: Path, exceptions: str = "", emulated: bool = False, hooks: str = "") -> Path:
    """A plugin of two claims whose hooks are the reference's and then `hooks`, with a conformance.toml where there are
    `exceptions`."""
    package = folder / f"small_{folder.name}"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "hooks.py").write_text("from edgecore_reference.hooks import *  # noqa\n" + hooks)
    manifest = PLUGIN.format(name=folder.name, package=package.name, emulated=str(emulated).lower())
    (package / "backend.toml").write_text(manifest)
    if exceptions:
        (package / "conformance.toml").write_text(exceptions)
    return folder


def exception(check: str, kind: str = "xfail", when: str = "", expires: str = "2099-01-01") -> str:
    """An entry of conformance.toml."""
    return (
        f'[[exceptions]]\ncheck = "{check}"\nkind = "{kind}"\nreason = "known"\nissue = "https://example.org/1"\n'
        f"expires = {expires}\n" + (f"when = {{ {when} }}\n" if when else "")
    )
