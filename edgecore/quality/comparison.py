"""Reads one text through up to four models at once and collects how far apart they are."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from edgecore.checkpoint.opening import Checkpoint
from edgecore.checkpoint.tensors import Readable
from edgecore.contract.errors import CannotDo
from edgecore.contract.precisions import Precision
from edgecore.contract.progress import Progress
from edgecore.contract.sampling import GREEDY
from edgecore.contract.sessions import Logits, TextSession
from edgecore.quality import baseline as cache
from edgecore.quality.divergence import Accumulator, ContextGain, Divergence, LogProbs, lockstep
from edgecore.quality.oracles import score
from edgecore.quality.rounding import RoundedTensors

CONTINUATION = 16
"""Tokens of the greedy continuation whose match is shown."""
STEPS = 3
"""Tokens stepped through one by one, to show that `score` and the path that `generate` uses agree."""
PAIRS = {
    "total": ("source", "backend"),
    "file": ("source", "file"),
    "kernels": ("file", "backend"),
    "baseline": ("source", "baseline"),
}
"""Each figure's reference and candidate."""


@dataclass(frozen=True, slots=True)
class Request:
    """Who is compared, on what."""

    reference: Checkpoint
    session: TextSession
    given: Mapping[str, Readable] | None
    """The artifact's weights, by the source's names."""
    precision: Precision | None
    """Its nominal bits are the baseline's; None or 32 bits for none."""
    tokens: tuple[int, ...]
    sha256: str

    @property
    def bits(self) -> float | None:
        return self.precision.bits if self.precision is not None else None


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured, None where it could not be."""

    total: Divergence | None
    file: Divergence | None
    kernels: Divergence | None
    baseline: Divergence | None
    context_gain: float
    paths: float | None
    """Mean KL between `score` and stepping, over the last positions."""
    missing: str
    """Why the backend was not compared; empty where it was."""


@dataclass(frozen=True, slots=True)
class _Backend:
    """What the backend answered before the text is read in lockstep."""

    first: Logits | None = None
    """The first chunk of its scores."""
    stream: Iterator[Logits] | None = None
    """The others; None where it gives no logits."""
    stepped: tuple[Logits, ...] = ()
    """Logits of the last positions, from prefill and single steps."""
    continuation: tuple[int, ...] = ()
    missing: str = ""


def compare_models(request: Request, progress: Progress) -> Figures:
    """All figures in one go through the text, in memory bounded by a layer of weights and a few rows of logits."""
    reference, tokens = request.reference, request.tokens
    backend = _ask_backend(request)
    name = cache.key(reference, request.bits, tokens) if request.bits is not None and request.bits < 32 else ""
    known = cache.recall(name) if name else None
    passes = 1 + (request.given is not None) + bool(name and known is None)
    advance = _Advance(progress, passes * reference.parameters)

    best: list[int] = []
    longer = [*tokens, *backend.continuation[:-1]]
    source = _noting_best(score(reference.decoder, reference.tensors, longer, advance), best)
    streams: dict[str, Iterator[Logits]] = {"source": source}
    if request.given is not None:
        streams["file"] = score(reference.decoder, request.given, tokens, advance)
    if name and known is None:
        rounded = RoundedTensors(reference.tensors, request.bits or 32)
        streams["baseline"] = score(reference.decoder, rounded, tokens, advance)
    if backend.stream is not None:
        streams["backend"] = chain([] if backend.first is None else [backend.first], backend.stream)

    found = {pair: Accumulator() for pair, (a, b) in PAIRS.items() if a in streams and b in streams}
    gain, paths = ContextGain(), Accumulator()
    try:
        for start, blocks in lockstep(list(streams.values()), len(tokens)):
            rows = {name: LogProbs(block) for name, block in zip(streams, blocks, strict=True)}
            gain.add(rows["source"])
            for pair, figures in found.items():
                a, b = PAIRS[pair]
                figures.add(rows[a], rows[b], tokens, start)
            if "backend" in rows:
                _compare_paths(paths, rows["backend"], backend.stepped, tokens, start)
        for _ in source:  # the greedy continuation
            pass
    finally:
        if isinstance(backend.stream, Generator):
            backend.stream.close()
    advance.finish()

    results = {pair: figures.result(request.sha256) for pair, figures in found.items()}
    if name and known is None:
        cache.remember(name, results["baseline"])
    total = results.get("total")
    if total is not None and backend.continuation:
        total = replace(total, greedy_match=_match(backend.continuation, best[len(tokens) - 1 :]))
    return Figures(
        total=total,
        file=results.get("file"),
        kernels=results.get("kernels"),
        baseline=results.get("baseline", known),
        context_gain=gain.result(),
        paths=paths.result().kl_mean if paths.tokens else None,
        missing=backend.missing,
    )


def _ask_backend(request: Request) -> _Backend:
    """Everything but the rest of the scores: a backend that cannot answer is known before the oracle has worked."""
    session, tokens = request.session, request.tokens
    try:
        context = session.context()
        context.reset()
        steps = min(STEPS, len(tokens) - 2)
        stepped = [context.prefill(tokens[: len(tokens) - steps])] if steps > 0 else []
        stepped += [context.step(token) for token in tokens[len(tokens) - steps :]] if steps > 0 else []
        context.reset()
        wanted = min(CONTINUATION, _room(request))
        pieces = session.generate(tokens, max_tokens=wanted, sampling=GREEDY) if wanted > 0 else iter(())
        continuation = tuple(piece.token for piece in pieces if piece.token >= 0)
        stream = iter(session.score(tokens))
        first = next(stream, None)
    except CannotDo as error:
        return _Backend(missing=error.what)
    return _Backend(first, stream, tuple(stepped), continuation)


def _room(request: Request) -> int:
    """Tokens that the text may be continued by. Not across longrope's border: the source is read over text and
    continuation at once, and would turn the text's own positions otherwise than the other streams do."""
    decoder, count = request.reference.decoder, len(request.tokens)
    room = min(request.session.context_length, decoder.context_length) - count
    if decoder.rope.is_long(count + room) and not decoder.rope.is_long(count):
        room = min(room, decoder.rope.original_context - count)
    return room


def _compare_paths(
    paths: Accumulator, scored: LogProbs, stepped: Sequence[Logits], tokens: Sequence[int], start: int
) -> None:
    """The rows of this block that were also stepped through; the last position predicts nothing and is left out."""
    begin = len(tokens) - len(stepped)
    for row in range(len(scored.logs)):
        if stepped and begin <= start + row < len(tokens) - 1:
            other = LogProbs(np.asarray(stepped[start + row - begin])[None])
            one = LogProbs(scored.logs[row : row + 1])
            paths.add(one, other, tokens, start + row)


def _noting_best(stream: Iterator[Logits], best: list[int]) -> Iterator[Logits]:
    """The stream as it is; the most likely token of each position goes to `best`."""
    for chunk in stream:
        best += np.argmax(chunk, axis=1).tolist()
        yield chunk


def _match(continuation: Sequence[int], best: Sequence[int]) -> float:
    """Share of the continuation before the first token that is not the reference's own choice.

    One pass of the reference over the backend's continuation suffices: up to the first difference both have read the
    same.
    """
    same = 0
    for ours, theirs in zip(continuation, best, strict=False):
        if ours != theirs:
            break
        same += 1
    return same / len(continuation)


class _Advance:
    """Counts weights read over all passes of the oracle: that is where the time goes, whatever the model."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, elements: int) -> None:
        self._done = min(self._done + elements, self._total)
        self._progress(self._done, self._total, "comparing with the source")

    def finish(self) -> None:
        self._progress(self._total, self._total, "comparing with the source")
