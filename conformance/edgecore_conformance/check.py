"""A check: a name, what it means, what it observes on a device, and how that is judged anywhere.

    @check
    class Rewind(Check):
        '''text.rewind: after a rewind, nothing remains of what was forgotten.

        What is done, why it matters, and what a failure usually means: this text is the page in the docs.
        '''

        applies = text_backends

        def observe(self, bench, cell): ...
        def judge(self, seen, cell, known, verdict): ...

The split is what makes a result verifiable: `verify` judges the kept observations again, by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, TypeVar

from edgecore.contract.manifest import Manifest
from edgecore_conformance.observation import Judgement, Observation

if TYPE_CHECKING:
    from edgecore_conformance.bench import Bench
    from edgecore_conformance.known import Known

Cell = Mapping[str, str]
"""What a row of a check is about: `{"family": "gemma3"}`, `{"precision": "q4_k_m"}`; empty where there is one row."""
GROUPS = {
    "manifest": "manifest and isolation",
    "convert": "convert",
    "quantize": "quantize",
    "text": "run, text",
    "tensor": "run, tensor",
    "benchmark": "benchmark",
    "placement": "placement",
    "robustness": "robustness",
}


class Check:
    """Subclass, decorate with `check`. Instances hold nothing: a check is a pair of functions with a name."""

    seconds: ClassVar[float] = 60.0
    """Deadline of a row."""
    levels: ClassVar[tuple[str, ...]] = ("quick", "full")
    whole: ClassVar[bool] = False
    """Whether it is about the whole plugin: `applies`, `cells` and `proves` are then given the whole manifest, and not
    what concerns the device of the run."""

    @classmethod
    def name(cls) -> str:
        """`group.words`: the docstring's beginning."""
        return (cls.__doc__ or "").partition(":")[0].strip()

    @classmethod
    def summary(cls) -> str:
        """The docstring's first line, without the name."""
        return (cls.__doc__ or "").partition(":")[2].strip().partition("\n")[0].strip()

    @classmethod
    def group(cls) -> str:
        return cls.name().partition(".")[0]

    def applies(self, manifest: Manifest) -> bool:
        """False makes every row `not_applicable`."""
        return True

    def unfit(self, known: Known) -> str:
        """Why it cannot be asked on the device of the run, in words, where it applies to the plugin: then there is one
        row, which is `not_applicable` and says so. Empty: it can."""
        return ""

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        """One row each; never empty for a check that applies."""
        return ({},)

    def proves(self, manifest: Manifest, cell: Cell) -> Mapping[str, str]:
        """Fields of a claim (`task`, `family`, `format`, `precision`) that this row is evidence for; those that are
        left out it is evidence for whatever they say. A claim is proven when all rows that speak of it are good."""
        return {name: cell[name] for name in ("task", "family", "format", "precision") if name in cell}

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        """Works with the plugin, through workers; keeps all that the judgement needs. Errors of the contract that it
        does not expect it lets through: they become `failed`, `crashed`, `timeout`."""
        raise NotImplementedError

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        """Fills in the verdict from what was seen and what is published. Pure: no plugin, no clock, no network."""
        raise NotImplementedError


C = TypeVar("C", bound=Check)

CHECKS: dict[str, Check] = {}
"""By name, as they were defined: `all_checks` imports those that are missing, and orders them."""


def check(kind: type[C]) -> type[C]:
    """Registers a check. Raises `ValueError` for a name that is taken, or belongs to no group."""
    name = kind.name()
    if kind.group() not in GROUPS or name in CHECKS or not kind.summary():
        raise ValueError(f"{kind.__qualname__}: {name!r} is no new name in one of {', '.join(GROUPS)}, with a summary")
    CHECKS[name] = kind()
    return kind


def all_checks() -> dict[str, Check]:
    """Every check, all groups imported: by group, module and place in it, whatever was imported first."""
    from importlib import import_module

    for group in GROUPS:
        import_module(f"edgecore_conformance.checks.{group}")
    order = list(GROUPS)
    return dict(sorted(CHECKS.items(), key=lambda item: (order.index(item[1].group()), type(item[1]).__module__)))


def has_task(task: str) -> Callable[[Manifest], bool]:
    """Whether a plugin has formats of a task that the suite has models for: its tensor models are ONNX, so a plugin
    must open those or convert them."""

    def has(manifest: Manifest) -> bool:
        formats = [f for f in manifest.formats if f.task == task]
        onnx = "onnx" in manifest.sources or any(".onnx" in f.suffixes for f in formats)
        return bool(formats) and (task != "tensor" or onnx)

    return has


def row_id(name: str, cell: Cell) -> str:
    """`text.logits[family=gemma3]`."""
    inside = ",".join(f"{key}={cell[key]}" for key in sorted(cell))
    return f"{name}[{inside}]" if inside else name
