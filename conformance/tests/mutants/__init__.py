"""The tests of the suite: plugins with one planted fault each, and the check that must catch it.

    mutant.py       what a mutant is, and how it becomes a plugin's folder
    plugin/         what every such folder gets: the way to plant a fault, and truthful plugins that quantize
    text.py, ...    the mutants, a file a group of checks
    unseen*.py      mutants that were thought of without looking at the checks

Each is the truthful reference plugin (or the truthful quantizer), with one behaviour replaced. Checks test behaviour:
none of them may know of a mutant.
"""

from __future__ import annotations

from collections.abc import Mapping

from mutants import (
    benchmark,
    convert,
    devices,
    manifest,
    numbers,
    placement,
    quantize,
    quantize_tensor,
    robustness,
    tensor,
    text,
    unseen,
    unseen_artifacts,
    unseen_tensor,
    unseen_words,
    unseen_work,
    words,
)
from mutants.mutant import TRUTHFUL, Mutant, write_mutant

__all__ = ["MUTANTS", "TRUTHFUL", "Mutant", "write_mutant"]

_FILES = (
    manifest, convert, quantize, quantize_tensor, numbers, text, words, tensor, benchmark, placement, devices,
    robustness, unseen, unseen_words, unseen_tensor, unseen_artifacts, unseen_work,
)  # fmt: skip
MUTANTS: Mapping[str, Mutant] = {mutant.name: mutant for file in _FILES for mutant in file.MUTANTS}
