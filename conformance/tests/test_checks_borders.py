"""Inputs that checks find for themselves: places where sampling shows its borders, numbers that need all their bits,
models in several files. What they are good for the mutants show; here is that they are what they are said to be."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgecore import registry
from edgecore.checkpoint import open_checkpoint
from edgecore_conformance import fixtures
from edgecore_conformance.checks import sources, tensor_types, text_sampling
from edgecore_conformance.known import TRAINED, Known


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_of_two_tokens_that_are_left_a_truthful_sampler_draws_both_and_no_other(seed: int) -> None:
    from edgecore.contract.sampling import Sampler, Sampling

    known = Known(registry.find("reference").ready_manifest, "cpu", seed=seed)
    text = known.tokens(TRAINED, "sampling borders", 40)
    clear = text_sampling.clearness(text, known, TRAINED)
    at = max(range(4, len(text)), key=clear)
    assert clear(at) > 1
    row = known.logits(TRAINED, text[:at])[-1]
    for how, left, draws in text_sampling.borders(text[:at], known, TRAINED):
        drawn = {Sampler(Sampling(**how, seed=seed))(row) for seed in range(draws)}
        assert drawn == set(left)


def test_what_needs_all_its_bits_is_not_the_same_in_half_of_them() -> None:
    known = Known(registry.find("reference").ready_manifest, "cpu")
    for wide, narrow in (("int64", "int32"), ("float64", "float32"), ("uint64", "uint32"), ("int16", "int8")):
        given = tensor_types.numbers(known, wide)
        with np.errstate(over="ignore"):
            through = given.astype(narrow).astype(wide)
        assert not tensor_types.differing("kept", given, given)
        assert tensor_types.differing("cut", through, given)


def test_a_model_in_several_files_is_the_same_model(tmp_path: Path) -> None:
    whole = fixtures.language_model()
    parts = Path(shutil.copytree(whole, tmp_path / "parts", copy_function=shutil.copyfile))
    sources.shard(parts, 3)
    assert len(list(parts.glob("*.safetensors"))) == 3
    with open_checkpoint(whole) as one, open_checkpoint(parts) as other:
        assert list(one.tensors) == list(other.tensors)
        assert all(np.array_equal(one.tensors[name].read(), other.tensors[name].read()) for name in one.tensors)
