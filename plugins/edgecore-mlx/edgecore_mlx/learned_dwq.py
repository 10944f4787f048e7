"""DWQ, distilled weight quantization: scales and biases of packed matrices are trained until the packed model answers
as the model does (mlx_lm.quant.dwq). It begins with what our GPTQ makes, which leaves less to be learned than rounding
does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.optimizers import Adam
from mlx.utils import tree_unflatten
from mlx_lm.quant import dwq

from edgecore.checkpoint.calibration import SEED
from edgecore.contract import BadRequest
from edgecore_mlx.learned import Pieces, Work, on_cpu, pack
from edgecore_mlx.watching import watched

BATCH = 1
"""Samples a step: of a short text, more steps are worth more than steadier ones."""
RATE = 1e-5
"""mlx-lm's is a tenth of it, for ten times as many steps."""
HELD_OUT = 8
"""One sample of so many is not trained on, and tells whether training helped."""


def learn(work: Work) -> list[str]:
    """Raises `BadRequest` for a text of one sample. Where the samples held out say that training made the model worse,
    it stays as it was packed."""
    train, valid = split(work.pieces)
    student = copy.deepcopy(work.model)
    pack(student, work.plan, work.rounded(work.plan))
    before = student.parameters()
    with _judged(work.model) as (target, losses), watched(dwq, work.progress, 2 * len(valid) + len(train), "dwq"):
        dwq.dwq_quantize(
            student,
            target,
            Adam(learning_rate=float(work.options.get("learning_rate", RATE)), bias_correction=True),
            [(list(piece), 0) for piece in train],
            [(list(piece), 0) for piece in valid],
            batch_size=BATCH,
            max_seq_length=len(train[0]),
            seed=SEED,
            dtype=mx.float32 if on_cpu() else mx.bfloat16,
        )
    first, last = (float(np.mean(some)) for some in (losses[0], losses[-1]))
    helped = last < first
    if not helped:
        student.update(before)
    modules = {path: module for path, module in student.named_modules() if path in work.plan}
    work.model.update_modules(tree_unflatten(list(modules.items())))
    count = f"{len(valid)} samples" if len(valid) > 1 else "a sample"
    said = f"dwq: on {count} that it did not train on, the loss went from {first:.3g} to {last:.3g}"
    return [said if helped else f"{said}, so what it learned was left out"]


def split(pieces: Pieces) -> tuple[Pieces, Pieces]:
    """What is trained on, and what is held out."""
    train = [piece for at, piece in enumerate(pieces) if at % HELD_OUT]
    if not train:
        raise BadRequest(
            "dwq learns from one sample of the text and tests on another, and the text is one sample",
            supported="a longer text, or a smaller calibration_length",
        )
    return train, pieces[::HELD_OUT]


@contextmanager
def _judged(model: Any) -> Iterator[tuple[Callable[..., mx.array], list[list[float]]]]:
    """The answers that are to be learned, and a list that gets the losses of each test, which mlx-lm only prints."""
    losses: list[list[float]] = []
    testing = False

    def target(batch: mx.array, number: int, split: str) -> mx.array:
        nonlocal testing
        testing = split == "valid"
        if testing and number == 0:
            losses.append([])
        answer: mx.array = model(batch)
        return answer

    def kept(student: mx.array, teacher: mx.array) -> mx.array:
        found: mx.array = loss(student, teacher)
        if testing:
            losses[-1].append(float(np.array(found).mean()))
        return found

    loss, say = dwq.kl_div_loss, dwq.print_trainable_parameters
    dwq.kl_div_loss, dwq.print_trainable_parameters = kept, lambda _: None
    try:
        yield target, losses
    finally:
        dwq.kl_div_loss, dwq.print_trainable_parameters = loss, say
