"""Sampling: repeatable by its seed, and drawn from the distribution that was asked for.

Only how often tokens come can be judged, not which: each runtime has its own generator. What a draw may be is
computed from the oracle's logits by the contract's order: top-k, top-p, temperature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.contract.sampling import Sampling
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, check
from edgecore_conformance.checks.text_common import (
    Inputs,
    Rows,
    TextCheck,
    allowance,
    answered,
    expected_rows,
    opened,
    stated,
    tokens_of,
    tolerance,
)
from edgecore_conformance.checks.text_generate import generated
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation

UNLIKELY = 5.0
"""Standard deviations that a sum over draws may be from its expectation: less than one chance in a million."""
Distribution = NDArray[np.float64]


@check
class TextSeeds(TextCheck):
    """text.seeds: a seed repeats its answer, and another seed gives another.

    One prompt is continued at temperature 1 with several seeds, each twice, with other generations between, and again
    in a session of its own. The same seed must give the same tokens; different seeds must differ, also those that agree
    in their lower 16 bits, and so must answers that were drawn without a seed.

    A seed that is ignored makes every sampled answer unrepeatable, or, where a fixed one is used instead, all alike.
    So does 0 where it is taken for no seed, and 2**32 - 1, which is llama.cpp's sign for none.
    """

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        fixture, draw = self.fixture(known.manifest, cell), known.draw("seeds")
        some = draw.randrange(2, 2**16)
        seeds = [0, 1, 2**32 - 1, some, some + 2**16]
        return {"prompt": known.tokens(fixture, "seeds", 12), "seeds": seeds, "max_tokens": 12}

    def look(self, bench: Bench, cell: Cell, asked: Inputs) -> Observation:
        def answer(session: Any, seed: int | None) -> Any:
            how = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": seed}
            return generated(session, {**asked, "sampling": how})

        fixture = self.fixture(bench.manifest, cell)
        with opened(bench, fixture) as session:
            first = [answer(session, seed) for seed in asked["seeds"]]
            unseeded = [answer(session, None) for _ in range(3)]
            again = [answer(session, seed) for seed in reversed(asked["seeds"])]
        with opened(bench, fixture) as session:
            anew = [answer(session, seed) for seed in asked["seeds"][2:4]]
        return Observation({"first": first, "again": again[::-1], "anew": anew, "unseeded": unseeded})

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        first, again, anew, unseeded = (
            [tokens_of(a) for a in seen.facts[name]] for name in ("first", "again", "anew", "unseeded")
        )
        errors = [a["error"] for name in ("first", "again", "anew", "unseeded") for a in seen.facts[name] if a["error"]]
        verdict.expect(not errors, f"generation failed: {errors[:1]}")
        for seed, a, b in zip(asked["seeds"], first, again, strict=True):
            verdict.expect(a == b, f"seed {seed} gives {a[:6]}... and then {b[:6]}...")
        for seed, a, b in zip(asked["seeds"][2:4], first[2:4], anew, strict=True):
            verdict.expect(a == b, f"seed {seed} gives {a[:6]}... and in another session {b[:6]}...")
        # A generator may have fewer seeds than the contract: the largest may well be another.
        apart = [tuple(made) for seed, made in zip(asked["seeds"], first, strict=True) if seed < 2**32 - 1]
        verdict.figure("answers of different seeds", len(set(apart)), len(apart), ">=", "different")
        verdict.figure("answers without a seed", len(set(map(tuple, unseeded))), 2, ">=", "different")


HOWS: tuple[Inputs, ...] = (
    {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
    {"temperature": 0.5, "top_k": 10, "top_p": 1.0},
    {"temperature": 2.0, "top_k": 50, "top_p": 1.0},
    {"temperature": 1.0, "top_k": 0, "top_p": 0.6},
    {"temperature": 1.6, "top_k": 0, "top_p": 0.7},
    {"temperature": 1.5, "top_k": 0, "top_p": 1.0},
)
CASES = (2, 2, 1, 1, 2, 3)
"""Answers of each: a temperature's square is told from it by a hundred tokens."""
CHANCE = 1e-6
"""Of a truthful backend that draws the likelier of two tokens every time."""
CLEAR = 0.25
"""Logits by which a backend may be off where the borders of top-k and top-p are looked at: they lie further apart."""


@check
class TextSampling(TextCheck):
    """text.sampling: draws follow the distribution that was asked for.

    Answers are drawn with temperature, top-k and top-p of several values. Given the answer so far, every token must
    be one that top-k and top-p leave, and over all of them the surprise (the negative logarithm of a token's
    probability) must be what the oracle's distribution expects, within five standard deviations. First tokens over
    many seeds are counted against their probabilities, by a chi-square statistic. At a place of the text where the
    oracle's two best are near each other and a third is not, top-k and top-p are set so that just one or two tokens
    are left: no other may come, and of two both must. Without settings the draws are those of the contract's defaults.

    A temperature that is applied before top-p, or twice, or not at all, top-k that keeps one too many by habit, top-p
    that leaves out the token that reaches it or is taken before top-k, or a generator whose neighbouring seeds give
    neighbouring numbers: all of them look like text.
    """

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        fixture, draw = self.fixture(known.manifest, cell), known.draw("sampling")
        cases: list[Inputs] = []
        for number, (how, answers) in enumerate(zip(HOWS, CASES, strict=True)):
            for _ in range(answers if known.level == "quick" else 4 * answers):
                prompt = known.tokens(fixture, f"sampling {number} {len(cases)}", 8)
                cases.append({"prompt": prompt, "max_tokens": 36, "sampling": {**how, "seed": draw.randrange(2**31)}})
        first = known.tokens(fixture, "sampling first", 6)
        begin, count = draw.randrange(1000), 80 if known.level == "quick" else 1000
        text = known.tokens(fixture, "sampling borders", 40)
        return {"cases": cases, "first": first, "seeds": list(range(begin, begin + count)), "text": text}

    def look(self, bench: Bench, cell: Cell, asked: Inputs) -> Observation:
        fixture = self.fixture(bench.manifest, cell)
        with opened(bench, fixture) as session:
            answers = [generated(session, case) for case in asked["cases"]]
            first = []
            for seed in asked["seeds"]:
                case = {"prompt": asked["first"], "max_tokens": 1, "sampling": {**HOWS[0], "seed": seed}}
                answer = generated(session, case)
                first.append(tokens_of(answer)[0] if tokens_of(answer) else -1)
            at = max(range(4, len(asked["text"])), key=clearness(asked["text"], bench.known, fixture))
            place, at_borders = asked["text"][:at], []
            for how, _, draws in borders(place, bench.known, fixture):
                chosen = ({**how, "seed": asked["seeds"][0] + n} for n in range(draws))
                made = [generated(session, {"prompt": place, "max_tokens": 1, "sampling": one}) for one in chosen]
                at_borders.append([how, [tokens_of(answer)[:1] for answer in made]])
            draws = until_both(distribution(bench.known.logits(fixture, place)[-1], asdict(Sampling())).max())
            usual = [tokens_of(answered(session, place, max_tokens=1))[:1] for _ in range(draws)]
            facts = {**stated(session, bench), "place": at, "borders": at_borders, "usual": usual}
        return Observation({"answers": answers, "first": first, **facts})

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        fixture = self.fixture(known.manifest, cell)
        longest = [*asked["cases"][0]["prompt"], *tokens_of(seen.facts["answers"][0])]
        slack = tolerance(known, seen, fixture, longest)
        lost, _ = allowance(known, seen, fixture, longest)
        for how in HOWS:
            excess = variance = 0.0
            drawn = 0
            for case, answer in zip(asked["cases"], seen.facts["answers"], strict=True):
                if {k: v for k, v in case["sampling"].items() if k != "seed"} != how:
                    continue
                if answer["error"]:
                    verdict.problems.append(f"generation failed: {answer['error']}")
                    continue
                made = tokens_of(answer)
                sequences = [[*case["prompt"], *made[:n]] for n in range(len(made))]
                for row, token in zip(expected_rows(known, fixture, sequences), made, strict=True):
                    verdict.expect(
                        bool(allowed(row, how, slack)[token]), f"{how}: token {token} is none that may be drawn"
                    )
                    p = distribution(row, how)
                    surprise = surprises(p)
                    mean = float((p * surprise).sum())
                    excess += float(surprise[token]) - mean
                    variance += float((p * (surprise - mean) ** 2).sum())
                    drawn += 1
            if drawn:
                # Logits that are off by d move the expectation by about d standard deviations of a token's.
                bound = UNLIKELY + math.sqrt(2 * lost * drawn)
                far = abs(excess) / math.sqrt(variance + 0.25)
                verdict.figure(
                    f"surprise of {drawn} tokens: temperature {how['temperature']}, top-k {how['top_k']}, "
                    f"top-p {how['top_p']}",
                    far, bound, "<=", "standard deviations", "five, and what the kernels may lose",
                )  # fmt: skip
        self._first(asked, seen, known, fixture, verdict)
        self._borders(asked, seen, known, fixture, slack, verdict)

    def _borders(
        self, asked: Inputs, seen: Observation, known: Known, fixture: str, slack: float, verdict: Judgement
    ) -> None:
        text, at = asked["text"], int(seen.facts["place"])
        clear = clearness(text, known, fixture)
        if not 4 <= at < len(text) or clear(at) < 0.99 * max(map(clear, range(4, len(text)))):
            verdict.problems.append(f"borders were looked at after {at} tokens, which is not the place for it")
            return
        row = known.logits(fixture, text[:at])[-1]
        usual = {token for one in seen.facts["usual"] for token in one}
        may = allowed(row, asdict(Sampling()), slack)
        verdict.expect(all(may[token] for token in usual), "without settings a token comes that the defaults exclude")
        verdict.expect(len(usual) > 1, "without settings every draw is the same, and the defaults are not greedy")
        for (how, left, draws), (given, made) in zip(
            borders(text[:at], known, fixture), seen.facts["borders"], strict=True
        ):
            same = set(given) == set(how) and all(abs(given[name] - how[name]) < 1e-3 for name in how)
            verdict.expect(same and len(made) >= draws - 1, f"{given}, {len(made)} times, was asked in place of {how}")
            if slack > CLEAR:
                continue
            came = {token for one in made for token in one}
            verdict.expect(came == set(left), f"{given} leaves {left}, and of {len(made)} draws came {sorted(came)}")

    def _first(self, asked: Inputs, seen: Observation, known: Known, fixture: str, verdict: Judgement) -> None:
        """Chi-square over the likely tokens, each with an expected count of at least five, the others together."""
        p = distribution(known.logits(fixture, asked["first"])[-1], HOWS[0])
        count = len(asked["seeds"])
        likely = [int(i) for i in np.argsort(-p) if p[i] * count >= 5]
        counts = [seen.facts["first"].count(i) for i in likely]
        cells = [(c, p[i] * count) for c, i in zip(counts, likely, strict=True)]
        rest = count * (1 - sum(p[i] for i in likely))
        if rest >= 1:
            cells.append((count - sum(counts), rest))
        if len(cells) < 2:
            return
        chi2 = sum((c - e) ** 2 / e for c, e in cells)
        free = len(cells) - 1
        bound = free + 6 * math.sqrt(2 * free) + 12
        verdict.figure(
            f"chi-square of {count} first tokens over {len(cells)} classes", chi2, bound, "<=", "",
            "mean, six standard deviations, and twelve for the tail",
        )  # fmt: skip
        verdict.expect(len(set(seen.facts["first"])) > 1, "every seed draws the same first token")


def clearness(text: list[int], known: Known, fixture: str) -> Callable[[int], float]:
    """How well a place, so many tokens into the text, shows where top-k and top-p end: above 1, the two best are so
    near that a few draws show both, and so far apart, as are the second and the third, that no kernel changes their
    order; and top-p of all tokens and of the three best differ."""

    def clear(count: int) -> float:
        p = np.sort(_softmax(known.logits(fixture, text)[count - 1]))[::-1][:3]
        first, second = float(np.log(p[0] / p[1])), float(np.log(p[1] / p[2]))
        low, high = _between(p)
        return min(first / 0.4, 1 / max(first, 1e-9), second / 0.4, (high - low) / 0.1)

    return clear


def borders(place: list[int], known: Known, fixture: str) -> list[tuple[Inputs, list[int], int]]:
    """(settings, the tokens that they leave, draws that show all of these)."""
    row = known.logits(fixture, place)[-1]
    order = [int(i) for i in np.argsort(-row, kind="stable")[:3]]
    p = _softmax(row)[order]
    many = until_both(p[0] ** 0.5 / (p[0] ** 0.5 + p[1] ** 0.5))  # the temperature is 2
    settings: list[tuple[Inputs, int]] = [
        ({"top_k": 1, "top_p": 1.0}, 1), ({"top_k": 2, "top_p": 1.0}, 2),
        ({"top_k": 0, "top_p": round(float(p[0] + p[1] / 2), 4)}, 2),
        ({"top_k": 3, "top_p": round(sum(_between(p)) / 2, 4)}, 2),
    ]  # fmt: skip
    return [({"temperature": 2.0, **how}, order[:left], many if left > 1 else 9) for how, left in settings]


def _between(p: Distribution) -> tuple[float, float]:
    """Between these, top-p of the three best tokens alone leaves two, and top-p of all tokens all three."""
    return float(max(p[0] / p.sum(), p[0] + p[1])), float((p[0] + p[1]) / p.sum())


def until_both(likelier: float) -> int:
    """Draws after which a token that comes so often has not come alone."""
    return math.ceil(math.log(CHANCE) / math.log(likelier))


def allowed(row: Rows, how: Inputs, slack: float) -> NDArray[np.bool_]:
    """Which tokens may be drawn, where logits may be off by `slack`."""
    order = np.sort(row)[::-1]
    lowest = -math.inf
    if how["top_k"]:
        lowest = float(order[how["top_k"] - 1])
    if how["top_p"] < 1:
        p = _softmax(order)
        last = int(np.searchsorted(np.cumsum(p), min(1.0, how["top_p"] + slack)))
        lowest = max(lowest, float(order[min(last, len(order) - 1)]))
    return np.asarray(row >= lowest - slack)


def surprises(p: Distribution) -> Distribution:
    """-log p; of a token that cannot be drawn, and was within the tolerance of one that can, as much as of
    the unlikeliest that can."""
    return np.asarray(-np.log(np.maximum(p, p[p > 0].min())))


def distribution(row: Rows, how: Inputs) -> Distribution:
    """(vocab,) probabilities by the contract's order."""
    logits = np.asarray(row, np.float64)
    order = np.argsort(-logits, kind="stable")
    keep = order[: how["top_k"] or len(order)]
    if how["top_p"] < 1:
        cumulative = np.cumsum(_softmax(logits[keep]))
        keep = keep[: int(np.searchsorted(cumulative, how["top_p"])) + 1]
    p = np.zeros(len(logits))
    p[keep] = _softmax(logits[keep] / how["temperature"])
    return p


def _softmax(scores: NDArray[Any]) -> Distribution:
    exponentials = np.exp(np.asarray(scores, np.float64) - float(np.max(scores)))
    return np.asarray(exponentials / exponentials.sum())
