"""The contract's own loop measures both tasks: it adds nothing to a step that a loop of the plugin's would save."""

from __future__ import annotations

import statistics
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from edgecore.contract import GREEDY, Artifact, BadRequest, Cancelled, DoesNotFit, Samples, Workload, no_progress
from edgecore.contract.options import resolve
from edgecore.workers.host import Host

from support import onnx_graphs


@pytest.fixture(scope="module")
def host() -> Host:
    return Host("onnxruntime", "edgecore_onnxruntime.hooks")


def measure(host: Host, onnxruntime: Any, artifact: Artifact, progress: Any = no_progress, **given: Any) -> Samples:
    workload = Workload(**{"prompt": (5, 6, 7, 8), "decode": 6, "repetitions": 2, "threads": 1, **given})
    options = resolve(onnxruntime.manifest.options_of("run"), {}, "run", "onnxruntime")
    samples: Samples = host.call(
        "edgecore_benchmark",
        {"artifact": artifact, "device": "cpu", "workload": workload, "options": options, "progress": progress},
    )
    return samples


def test_samples_of_a_language_model_are_raw_and_as_many_as_asked(
    host: Host, onnxruntime: Any, tiny_onnx: Artifact
) -> None:
    samples = measure(host, onnxruntime, tiny_onnx, context_length=32)
    assert not samples.native_loop
    assert len(samples.repetitions) == 2
    assert all(len(r.steps) == 6 and r.prefill > 0 and min(r.steps) > 0 for r in samples.repetitions)
    assert samples.load > 0
    assert samples.tokens == (5, 6, 7, 8, 5, 6)
    assert samples.conditions.items() >= {"threads": "1", "context": "32", "device": "cpu", "kv_cache": "f32"}.items()


def test_greedy_decodes_what_the_session_generates(host: Host, onnxruntime: Any, tiny_onnx: Artifact) -> None:
    samples = measure(host, onnxruntime, tiny_onnx, mode="greedy")
    with onnxruntime.run(tiny_onnx) as session:
        pieces = list(session.generate([5, 6, 7, 8], max_tokens=6, sampling=GREEDY))
    assert samples.tokens == tuple(p.token for p in pieces if p.token >= 0)


def test_a_step_costs_hardly_more_than_the_bare_inference(onnxruntime: Any, tiny_onnx: Artifact) -> None:
    """Under a tenth of a millisecond, where steps of real models take ten and more: the reason for no native loop."""
    with onnxruntime.run(tiny_onnx, 512) as session:
        context = session.context()
        infer, inside, around = context.network._infer, [], []

        def timed() -> None:
            start = perf_counter()
            infer()
            inside.append(perf_counter() - start)

        context.network._infer = timed
        context.prefill([5] * 8)
        for _ in range(300):
            start = perf_counter()
            context.step(7)
            around.append(perf_counter() - start)
    extra = [whole - part for whole, part in zip(around, inside[1:], strict=True)]
    assert statistics.quantiles(extra, n=10)[0] < 1e-4


def test_a_tensor_model_is_measured_by_the_same_loop(host: Host, onnxruntime: Any, tmp_path: Path) -> None:
    artifact = onnx_graphs.native(onnx_graphs.product(tmp_path / "m.onnx"), backend="onnxruntime", format="onnx")
    samples = measure(host, onnxruntime, artifact, prompt=(), decode=4)
    assert [len(r.steps) for r in samples.repetitions] == [4, 4]
    assert all(r.prefill == 0 and min(r.steps) > 0 for r in samples.repetitions)


def test_what_makes_no_sense_is_refused_and_a_run_can_be_cancelled(
    host: Host, onnxruntime: Any, tiny_onnx: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadRequest, match="fastest"):
        measure(host, onnxruntime, tiny_onnx, mode="fastest")
    with pytest.raises(DoesNotFit):
        measure(host, onnxruntime, tiny_onnx, context_length=8)
    with pytest.raises(BadRequest):
        measure(host, onnxruntime, tiny_onnx, prompt=())

    def cancel(done: int, total: int, stage: str = "") -> None:
        raise Cancelled("enough")

    monkeypatch.setattr("edgecore.measure.loop.REPORT_EVERY", 0.0)
    with pytest.raises(Cancelled):
        measure(host, onnxruntime, tiny_onnx, progress=cancel)
