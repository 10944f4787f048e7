"""GPTQ of a folder's matrices: rounded one input after the other by how a text uses them, computed in numpy
(`edgecore.checkpoint.usage`), since MLX on a CPU is slower than numpy's BLAS and tells nothing of a matrix's inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgecore.checkpoint import Decoder, Tokenizer
from edgecore.checkpoint import own_text as own
from edgecore.checkpoint.gptq import Floats
from edgecore.checkpoint.usage import Pieces, walk
from edgecore.contract import Progress, usable_memory
from edgecore_mlx import affine
from edgecore_mlx.affine import Small
from edgecore_mlx.recipe import Packing
from edgecore_mlx.weights import Canonical

AT_ONCE = 1 << 24
"""Numbers rounded at once: rows know nothing of each other, and a head has many."""


def by_use(
    decoder: Decoder, weights: Mapping[str, Canonical], pieces: Pieces, plan: Mapping[str, Packing],
    dtypes: Mapping[str, str], progress: Progress,
) -> dict[str, Small]:  # fmt: skip
    """All matrices of the plan that multiply something, by module path.

    plan:   by module path; fused matrices as the folder has them.
    dtypes: of their scales.
    """
    made: dict[str, dict[int, Small]] = {}

    def rounded(names: tuple[str, ...], used: Floats) -> Mapping[str, Floats]:
        answer: dict[str, Floats] = {}
        for packing, dtype, alike in _alike([weights[name] for name in names], plan, dtypes):
            small = _in_parts(np.concatenate([weight.read() for weight in alike]), used, packing, dtype)
            start = 0
            for weight in alike:
                part = small.rows(start, start + weight.shape[0])
                made.setdefault(weight.path, {})[weight.start] = part
                if ".layers." in weight.name:
                    answer[weight.name] = part.read()
                start += weight.shape[0]
        return answer

    walk(decoder, weights, pieces, rounded, progress)
    return {path: affine.joined([parts[start] for start in sorted(parts)]) for path, parts in made.items()}


def own_text(
    decoder: Decoder, weights: Mapping[str, Canonical], tokenizer: Tokenizer, count: int, length: int,
    progress: Progress,
) -> list[list[int]]:  # fmt: skip
    """What the model writes; its weights stay in memory where they take no more than half of it."""
    _, free = usable_memory()
    size = 4 * sum(int(np.prod(weight.shape)) for weight in weights.values())
    return own.own_text(decoder, weights, tokenizer, count, length, progress, resident=2 * size <= free)


def _alike(
    weights: Sequence[Canonical], plan: Mapping[str, Packing], dtypes: Mapping[str, str]
) -> list[tuple[Packing, str, list[Canonical]]]:
    """Those of one input that are packed alike: they share what is dear, the inverse and the loop over columns."""
    found: dict[tuple[Packing, str], list[Canonical]] = {}
    for weight in weights:
        if weight.path in plan:
            found.setdefault((plan[weight.path], dtypes[weight.path]), []).append(weight)
    return [(*how, alike) for how, alike in found.items()]


def _in_parts(weights: Floats, used: Floats, packing: Packing, dtype: str) -> Small:
    """`affine.by_use`, some rows at a time."""
    step = max(1, AT_ONCE // weights.shape[1])
    starts = range(0, len(weights), step)
    return affine.joined([affine.by_use(weights[at : at + step], used, packing, dtype) for at in starts])


def of_head(table: Canonical, norm: Floats) -> Floats:
    """How an output head that is the table of embeddings is used, as far as it can be told without a text: what it is
    multiplied with lies near the rows of the tokens that follow. That counts for half, for the other half columns stand
    for themselves. SmolLM2-135M in 4 bits without a text loses 7 % less KL so, a model of 4.5M parameters a third.

    norm: the last norm's weights.
    """
    rows, columns = table.shape
    total, step = np.zeros((columns, columns), np.float32), max(1, AT_ONCE // columns)
    for start in range(0, rows, step):
        x = table.rows(start, min(start + step, rows))
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.float32(1e-9)) * norm
        total += x.T @ x
    total /= np.float32(rows)
    return np.asarray(total + np.diag(np.diag(total)))
