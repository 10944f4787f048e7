"""Dynamic quantization (mlx_lm.quant.dynamic_quant): what each matrix would win by more bits is read off the gradient
of the divergence, and those that win most for their size get them, until the file is as large as it may be. All are
then rounded by our GPTQ, where mlx-lm rounds to nearest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from mlx_lm.quant import dynamic_quant

from edgecore.contract import BadRequest
from edgecore_mlx.learned import Work, hidden, in_layers, matrices, pack
from edgecore_mlx.recipe import Packing
from edgecore_mlx.watching import watched

MORE: Mapping[int, int] = {3: 4, 4: 6, 5: 6, 6: 8}
"""Bits of the matrices that win most, by bits of the others."""
MOST = 1.24
"""Times the nominal bits; the core refuses more than 1.25."""


_WHERE: Sequence[Callable[[str], bool]] = (lambda _: True, in_layers)
"""Whose bits are bounded: of all that are chosen from, and of the layers among them, which the core looks at."""


def learn(work: Work) -> list[str]:
    """Raises `BadRequest`."""
    few = work.packing
    more = replace(few, bits=int(work.options.get("high_bits", MORE[few.bits])))
    target = float(work.options.get("target_bpw", MOST * few.bits))
    if more.bits <= few.bits:
        raise BadRequest(f"high_bits={more.bits} of matrices that have {few.bits} anyway", supported="more")
    least = _bits(few, work.width)
    if not least < target <= MOST * few.bits:
        raise BadRequest(
            f"target_bpw={target:g}: with scales all have {least:g}",
            supported=f"more than that, up to {MOST * few.bits:g}",
        )
    every = matrices(work.model)
    others = [path for path in every if work.plan.get(path) != few]
    with hidden(work.model, others), watched(dynamic_quant, work.progress, len(work.pieces), "dynamic"):
        found = dynamic_quant.estimate_sensitivities(
            work.model, work.tokens, few.bits, few.group_size, more.bits, more.group_size, batch_size=1
        )
    sizes = {path: module.weight.size for path, module in every.items()}
    share = (target - least) / (more.bits - few.bits)
    rooms = [share * sum(sizes[path] for path, _ in found if within(path)) for within in _WHERE]
    chosen = dict(work.plan) | dict.fromkeys(choose(dict(found), sizes, rooms), more)
    pack(work.model, chosen, work.rounded(chosen))
    return [f"dynamic: {sum(chosen[path] == more for path, _ in found)} of {len(found)} matrices in {more.bits} bits"]


def choose(wins: Mapping[str, float], sizes: Mapping[str, int], rooms: Sequence[float]) -> list[str]:
    """Those that win most for their size, as many weights as there is room for, in all and in the layers.

    mlx-lm seeks a threshold between the least and the most that is won, to a thousandth of that, and counts scales as
    wide as it computes: few matrices win a hundred times what the others do, so it may be far off.
    """
    chosen, left = [], list(rooms)
    for path in sorted(wins, key=lambda path: -wins[path]):
        after = [room - sizes[path] * within(path) for room, within in zip(left, _WHERE, strict=True)]
        if min(after) >= 0:
            chosen.append(path)
            left = after
    return chosen


def _bits(packing: Packing, width: int) -> float:
    """Of a weight, with its share of a scale and a bias."""
    return packing.bits + 2 * width / packing.group_size
