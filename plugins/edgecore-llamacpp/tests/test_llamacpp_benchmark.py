"""The native loop gives raw samples of the workload that was asked for, and the tokens that the session would give."""

from __future__ import annotations

from typing import Any

import pytest

from edgecore.contract import GREEDY, Artifact, BadRequest, Cancelled, DoesNotFit, Samples, Workload, no_progress


def measure(llama: Any, artifact: Artifact, progress: Any = no_progress, **given: Any) -> Samples:
    workload = Workload(**{"prompt": (5, 6, 7, 8), "decode": 6, "repetitions": 2, "threads": 1, **given})
    samples: Samples = llama.hook.edgecore_benchmark(
        artifact=artifact,
        device="cpu",
        workload=workload,
        options={"kv_cache": "f16", "flash_attention": "auto"},
        progress=progress,
    )
    return samples


def test_samples_are_raw_and_as_many_as_asked(llama: Any, tiny_gguf: Artifact) -> None:
    samples = measure(llama, tiny_gguf, context_length=32)
    assert samples.native_loop
    assert len(samples.repetitions) == 2
    assert all(len(r.steps) == 6 and r.prefill > 0 and min(r.steps) > 0 for r in samples.repetitions)
    assert samples.load > 0
    assert samples.tokens == (5, 6, 7, 8, 5, 6)
    assert samples.conditions["threads"] == "1"
    assert samples.conditions["context"] == "32"


def test_greedy_decodes_what_the_session_generates(llama: Any, tiny_gguf: Artifact) -> None:
    samples = measure(llama, tiny_gguf, mode="greedy")
    with llama.run(tiny_gguf) as session:
        pieces = list(session.generate([5, 6, 7, 8], max_tokens=6, sampling=GREEDY))
    assert samples.tokens == tuple(p.token for p in pieces if p.token >= 0)


def test_prefill_alone_and_long_prompts(llama: Any, tiny_gguf: Artifact) -> None:
    samples = measure(llama, tiny_gguf, prompt=(5,) * 500, decode=0)
    assert all(r.steps == () for r in samples.repetitions)


def test_what_makes_no_sense_is_refused(llama: Any, tiny_gguf: Artifact) -> None:
    with pytest.raises(BadRequest, match="fastest"):
        measure(llama, tiny_gguf, mode="fastest")
    with pytest.raises(DoesNotFit):
        measure(llama, tiny_gguf, context_length=8)
    with pytest.raises(BadRequest):
        measure(llama, tiny_gguf, prompt=())


def test_it_can_be_cancelled(llama: Any, tiny_gguf: Artifact) -> None:
    def cancel(done: int, total: int, stage: str = "") -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        measure(llama, tiny_gguf, progress=cancel)
