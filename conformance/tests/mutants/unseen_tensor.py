"""Faults that were thought of before the checks were read (unseen.py): tensor sessions."""

from __future__ import annotations

from typing import Any

from edgecore_conformance.outcomes import Outcome
from mutants.mutant import Mutant

TENSOR = "from edgecore_reference import tensors\nfrom edgecore_reference.tensors import OnnxSession\n"


def _tensor(name: str, fault: str, checks: str, hooks: str, **more: Any) -> Mutant:
    return Mutant(name, fault, tuple(checks.split()), TENSOR + hooks, **more)


def _feeds(change: str) -> str:
    """A session whose feeds are changed, each by an expression in `f`."""
    return f"""
@instead(OnnxSession, "__call__")
def call(was, self, feeds):
    return was(self, {{n: {change} for n, f in feeds.items()}})
"""


def _answers(change: str) -> str:
    """A session whose answers are changed, each by an expression in `a`."""
    return f"""
@instead(OnnxSession, "__call__")
def call(was, self, feeds):
    return {{n: {change} for n, a in was(self, feeds).items()}}
"""


MUTANTS = (
    _tensor(
        "square_feeds_transposed",
        "a feed that is as wide as it is long is taken for its transpose",
        "tensor.operators",
        _feeds("np.ascontiguousarray(f.T) if f.ndim == 2 and f.shape[0] == f.shape[1] else f"),
    ),
    _tensor(
        "long_integers_cut",
        "integers of 64 bits go through 32",
        "tensor.types",
        _feeds("f.astype(np.int32).astype(f.dtype) if f.dtype == np.int64 else f"),
    ),
    _tensor(
        "doubles_in_single",
        "float64 models are computed in float32",
        "tensor.types",
        _feeds("f.astype(np.float32).astype(f.dtype) if f.dtype == np.float64 else f"),
    ),
    _tensor(
        "infinity_is_the_largest",
        "infinities become the largest number of their type",
        "tensor.operators",
        _answers("np.nan_to_num(a, nan=np.nan) if a.dtype.kind == 'f' else a"),
    ),
    _tensor(
        "scalars_have_an_axis",
        "an output without axes comes with one",
        "tensor.operators",
        _answers("a.reshape(1) if a.ndim == 0 else a"),
    ),
    _tensor(
        "same_size_is_same_shape",
        "a feed that has as many elements as are due is reshaped",
        "tensor.wrong_feeds",
        """
@instead(OnnxSession, "__call__")
def call(was, self, feeds):
    fitted = {}
    for spec in self.inputs:
        feed = feeds.get(spec.name)
        if feed is not None:
            last = spec.shape[-1] if spec.shape and isinstance(spec.shape[-1], int) else 0
            wrong = feed.ndim != len(spec.shape) or (last and feed.shape[-1] != last)
            fitted[spec.name] = feed.reshape(-1, last) if wrong and last and feed.size % last == 0 else feed
    return was(self, {**feeds, **fitted})
""",
    ),
    _tensor(
        "one_more_axis_accepted",
        "a feed with an axis of length one too many is squeezed",
        "tensor.wrong_feeds",
        """
@instead(OnnxSession, "__call__")
def call(was, self, feeds):
    due = {spec.name: len(spec.shape) for spec in self.inputs}
    return was(self, {n: f[0] if f.ndim > due.get(n, 9) and len(f) == 1 else f for n, f in feeds.items()})
""",
    ),
    _tensor(
        "second_axis_of_the_first_call",
        "an open axis beside the batch keeps the size that it had at the first call",
        "tensor.dynamic_shapes",
        """
@instead(OnnxSession, "__call__")
def call(was, self, feeds):
    kept = self.__dict__.setdefault("kept", {})
    fitted = {}
    for spec in self.inputs:
        feed = feeds.get(spec.name)
        if feed is not None and feed.ndim > 1 and len(spec.shape) > 1 and isinstance(spec.shape[1], str):
            size = kept.setdefault(spec.name, feed.shape[1])
            fitted[spec.name] = np.resize(feed, (feed.shape[0], size, *feed.shape[2:])).astype(feed.dtype)
    return was(self, {**feeds, **fitted})
""",
    ),
    _tensor(
        "names_made_identifiers",
        "names of inputs and outputs lose what an identifier may not hold",
        "tensor.specs",
        """
import re

def plain(name):
    return re.sub("[^A-Za-z0-9_]", "_", name)

@instead(OnnxSession, "inputs")
def inputs(was, self):
    return tuple(replace(s, name=plain(s.name)) for s in was(self))

@instead(OnnxSession, "outputs")
def outputs(was, self):
    return tuple(replace(s, name=plain(s.name)) for s in was(self))

@instead(OnnxSession, "__call__")
def call(was, self, feeds):
    names = {plain(s.name): s.name for s in self._inputs}
    return {plain(n): a for n, a in was(self, {names.get(n, n): f for n, f in feeds.items()}).items()}
""",
    ),
    _tensor(
        "empty_batch_dies",
        "a batch of no rows ends the process",
        "tensor.dynamic_shapes",
        """
import os

@instead(OnnxSession, "__call__")
def call(was, self, feeds):
    if any(f.size == 0 for f in feeds.values()):
        os.abort()
    return was(self, feeds)
""",
        outcomes=(Outcome.CRASHED, Outcome.FAILED),
    ),
    _tensor(
        "calls_keep_their_feeds",
        "a tensor session holds on to what it was fed, until the process ends",
        "tensor.memory",
        """
fed = []

@instead(OnnxSession, "__call__")
def call(was, self, feeds):
    fed.append({n: f.copy() for n, f in feeds.items()})
    return was(self, feeds)
""",
    ),
    _tensor(
        "feeds_in_place",
        "feeds are scaled where they lie, and stay so",
        "robustness.host",
        """
@instead(OnnxSession, "__call__")
def call(was, self, feeds):
    found = was(self, feeds)
    for feed in feeds.values():
        if feed.dtype == np.float32 and feed.flags.writeable:
            feed *= np.float32(1 / 255)
    return found
""",
    ),
    _tensor(
        "answers_in_one_buffer",
        "outputs lie in the session's buffer, and the next call writes over them",
        "robustness.host",
        """
@instead(OnnxSession, "__call__")
def call(was, self, feeds):
    kept = self.__dict__.setdefault("kept", {})
    for name, answer in was(self, feeds).items():
        if name not in kept or kept[name].shape != answer.shape:
            kept[name] = answer.copy()
        kept[name][...] = answer
    return dict(kept)
""",
    ),
)
