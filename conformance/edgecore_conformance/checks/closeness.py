"""How far a text artifact's logits are from what is published, judged by the core's own bounds: the oracle on the
fixture, and the oracle on the fixture rounded to nearest with the precision's bits, which says what those bits cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint import Oracle, Tensor, open_checkpoint
from edgecore.contract.artifacts import Artifact
from edgecore.contract.errors import CannotDo, EdgecoreError
from edgecore.contract.precisions import Precision
from edgecore.contract.sessions import TextSession
from edgecore.quality import verdict as core
from edgecore.quality.bounds import Bounds, compute_class
from edgecore.quality.divergence import ContextGain, Divergence, LogProbs, chunks, compare
from edgecore.quality.rounding import RoundedTensors
from edgecore_conformance.bench import Bench
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation

Logits = NDArray[Any]
TOKENS = 32
"""Positions whose logits are kept: enough for a mean, and 30 precisions stay below 20 MB."""
EIGHT_X = 64
"""Kernels that round activations to 8 bits may lose so many times what rounding the weights to 8 bits costs this model:
llama.cpp's lose 6 times that (a scale for 32 values), one scale for a whole row some ten times more."""


def scored(session: TextSession, tokens: Sequence[int], logits: bool) -> Logits:
    """float32 (len(tokens), vocab), by `score` where the backend declares it, else token by token."""
    if logits:
        return np.concatenate([np.asarray(c, np.float32) for c in session.score(tokens)])
    context = session.context()
    context.reset()
    rows = [np.asarray(context.step(t) if i else context.prefill([t]), np.float32) for i, t in enumerate(tokens)]
    context.reset()
    return np.stack(rows)


def observe_logits(
    bench: Bench, seen: Observation, artifact: Artifact, fixture: str, purpose: str, *, small: bool = False
) -> None:
    """Opens the artifact and keeps its logits on the held-out text and, where its weights can be had, the oracle's on
    these weights. Where there are no logits, says so. `small` keeps half precision, which costs 1e-5 nats."""
    kept: type[np.floating[Any]] = np.float16 if small else np.float32
    tokens = bench.known.tokens(fixture, purpose, TOKENS)
    seen.facts["tokens"] = tokens
    with bench.session(artifact, threads=1) as opened:
        assert isinstance(opened, TextSession)
        seen.facts["compute"] = str(opened.conditions.get("compute", ""))
        try:
            found = scored(opened, tokens, bench.manifest.can("logits"))
        except CannotDo as error:
            seen.facts["no_logits"] = error.what
            return
    with np.errstate(over="ignore"):
        seen.arrays["logits"] = found.astype(kept)
    weights = file_tensors(bench, artifact, fixture)
    if weights is not None:
        with open_checkpoint(bench.known.fixture(fixture)) as model:
            rows = list(Oracle(model.decoder, cast(Mapping[str, Tensor], weights)).score(tokens))
        with np.errstate(over="ignore"):
            seen.arrays["file_logits"] = np.concatenate(rows).astype(kept)


def file_tensors(bench: Bench, artifact: Artifact, fixture: str) -> Mapping[str, Any] | None:
    """The artifact's weights as the suite itself reads them, for formats of the neutral model; else as the backend
    gives them; None where neither can. A file that only seems to be of the neutral model has other names."""
    with open_checkpoint(bench.known.fixture(fixture)) as model:
        names = list(model.tensors)
        shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
    with suppress(EdgecoreError, OSError):
        opened = open_checkpoint(artifact.model)
        if all(name in opened.tensors and opened.tensors[name].shape == shapes[name] for name in names):
            return opened.tensors
    with suppress(EdgecoreError):
        given = bench.backend().weights(artifact, deadline=bench.left)
        if given is not None and all(name in given for name in names):
            return {name: _Given(name, shapes[name], np.asarray(given[name], np.float32)) for name in names}
    return None


class _Given:
    """A backend's dequantized weight as the oracle reads one."""

    def __init__(self, name: str, shape: tuple[int, ...], array: NDArray[np.float32]) -> None:
        self.name, self.shape, self._array = name, shape, array.reshape(shape)

    def read(self) -> NDArray[np.float32]:
        return self._array

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        return self._array[start:stop]


def judge_logits(
    seen: Observation, known: Known, fixture: str, purpose: str, precision: Precision, verdict: Judgement
) -> bool:
    """Puts every figure beside its bound; False where there was nothing to compare."""
    tokens = known.tokens(fixture, purpose, TOKENS)
    if seen.facts.get("tokens") != tokens:
        verdict.problems.append("other tokens were scored than this run's seed draws")
        return False
    if "logits" not in seen.arrays:
        refused = seen.facts.get("no_logits", "none came")
        verdict.expect(not known.manifest.can("logits"), f"logits are declared, and refused: {refused}")
        return False
    source, found = known.logits(fixture, tokens), np.asarray(seen.arrays["logits"], np.float32)
    if found.shape != source.shape:
        verdict.problems.append(f"logits of shape {found.shape}, where {source.shape} are due")
        return False
    compute, origin = compute_class(str(seen.facts.get("compute", "")), precision)
    allowed, closer = bounds_for(known, fixture, tokens)
    origin += closer if compute == "int8" else ""
    total = compare(chunks(source), chunks(found), tokens)
    base = baseline(known.fixture(fixture), precision.bits, tuple(tokens))
    lost = compare(chunks(source), chunks(base), tokens) if base is not None else None
    checks = []
    if "file_logits" in seen.arrays:
        file = np.asarray(seen.arrays["file_logits"], np.float32)
        checks.append(core.kernels_check(compare(chunks(file), chunks(found), tokens), compute, origin, allowed))
        checks.append(
            core.file_check(compare(chunks(source), chunks(file), tokens), lost, precision.bits, known.bounds)
        )
    checks.append(core.total_check(total, lost, precision.bits, compute, origin, allowed))
    checks.append(core.garbage_check(total, gain(source), known.bounds))
    for one in checks:
        verdict.figure(one.name, one.measured, one.bound, "<=", "nats", one.origin)
    _inform(verdict, total, lost)
    return True


def bounds_for(known: Known, fixture: str, tokens: Sequence[int]) -> tuple[Bounds, str]:
    """The core's bounds, and for 8-bit kernels no more than what this fixture has reason to lose: the core's is fixed,
    for models of which nothing is known, and would let two swapped rows pass here. With where that comes from."""
    rounded = baseline(known.fixture(fixture), 8, tuple(tokens))
    assert rounded is not None
    least = known.bounds.kernel("f32")
    lost = compare(chunks(known.logits(fixture, tokens)), chunks(rounded), tokens).kl_mean
    own = max(EIGHT_X * lost, least)
    if own >= known.bounds.kernel("int8"):
        return known.bounds, ""
    kernels = {**known.bounds.kernels, "int8": own}
    return replace(known.bounds, kernels=kernels), f"; here {EIGHT_X} x the {lost:.3g} of weights rounded to 8 bits"


def _inform(verdict: Judgement, total: Divergence, lost: Divergence | None) -> None:
    verdict.figure("top-1", total.top1)
    verdict.figure("perplexity ratio", total.perplexity_ratio)
    if lost is not None:
        verdict.figure("round-to-nearest", lost.kl_mean, unit="nats")


def gain(source: Logits) -> float:
    """Nats that the fixture's predictions gain from reading the text."""
    made = ContextGain()
    made.add(LogProbs(source))
    return made.result()


def baseline(path: Path, bits: float, tokens: tuple[int, ...]) -> Logits | None:
    """The oracle's logits on the fixture rounded to nearest; None where nothing is rounded."""
    return None if bits >= 32 else _baseline(path, bits, tokens)


@lru_cache(maxsize=64)
def _baseline(path: Path, bits: float, tokens: tuple[int, ...]) -> Logits:
    with open_checkpoint(path) as model:
        rounded = cast(Mapping[str, Tensor], RoundedTensors(model.tensors, bits))
        return np.concatenate(list(_scored(Oracle(model.decoder, rounded), tokens)))


def _scored(oracle: Oracle, tokens: Sequence[int]) -> Iterator[Logits]:
    yield from oracle.score(tokens)
