"""The native generation loop: the token is chosen from the logits where libllama left them.

Sampling is libllama's own chain, in the contract's order: top-k, top-p, temperature, one draw. Greedy is numpy's argmax
over the same memory, which a test holds to libllama's greedy sampler and which is several times as fast.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from edgecore.contract import Piece, Sampling
from edgecore.contract.generation import TextStream, shared_prefix
from edgecore_llamacpp.model import Context
from edgecore_llamacpp.native import libllama

if TYPE_CHECKING:
    from edgecore_llamacpp.session import LlamaSession

Choose = Callable[[], int]
RANDOM_SEED = 0xFFFFFFFF
"""libllama's word for "draw a seed": never a seed of ours."""


def pieces(
    session: LlamaSession,
    tokens: list[int],
    max_tokens: int | None,
    sampling: Sampling,
    stop: Sequence[str],
    reuse_cache: bool,
) -> Iterator[Piece]:
    """As `edgecore.contract.generation.generate`; the room was checked."""
    context = session.context()
    common = shared_prefix(context.tokens, tokens) if reuse_cache else 0
    if common:
        context.rewind(context.position - common)
    else:
        context.reset()
    stream = TextStream(stop)
    ends = session.eos_ids
    with chooser(context.low, sampling) as choose:
        context.append(tokens[common:])
        made = 0
        while max_tokens is None or made < max_tokens:
            token = choose()
            if token in ends:
                yield Piece(token, stream.push(b"", final=True), "eos")
                return
            made += 1
            text = stream.push(session.token_bytes(token))
            if stream.stopped:
                yield Piece(token, text, "stop")
                return
            yield Piece(token, text)
            if made != max_tokens:
                context.append((token,))
    yield Piece(-1, stream.push(b"", final=True), "length")


@contextmanager
def chooser(low: Context, sampling: Sampling) -> Iterator[Choose]:
    """A function that answers the next token after the context's last one."""
    if sampling.temperature == 0:
        yield lambda: int(np.argmax(low.last_logits()))
        return
    chain = libllama.llama_sampler_chain_init(libllama.llama_sampler_chain_default_params())
    try:
        for sampler in _samplers(sampling):
            libllama.llama_sampler_chain_add(chain, sampler)
        yield lambda: int(libllama.llama_sampler_sample(chain, low.pointer, -1))
    finally:
        libllama.llama_sampler_free(chain)


def _samplers(sampling: Sampling) -> Iterator[int]:
    if sampling.top_k:
        yield libllama.llama_sampler_init_top_k(sampling.top_k)
    if sampling.top_p < 1:
        yield libllama.llama_sampler_init_top_p(sampling.top_p, 1)
    yield libllama.llama_sampler_init_temp(sampling.temperature)
    seed = sampling.seed if sampling.seed is not None else random.getrandbits(32)
    yield libllama.llama_sampler_init_dist(seed % RANDOM_SEED)
