"""A text folder as a text backend keeps the contract: the same answers whole, chunked or stepped, and typed errors."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import edgecore
from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.contract import (
    GREEDY,
    Artifact,
    BadRequest,
    CannotDo,
    CorruptModel,
    DeviceUnavailable,
    DoesNotFit,
    EdgecoreError,
    ModelNotFound,
    PlacementSource,
    Sampling,
)
from edgecore_mlx import memory, opening
from edgecore_mlx import session as sessions

from support.divergence import divergence
from support.tiny import TEXT, tiny_llama

PROMPT = "The lighthouse keeper wrote one line"


@pytest.fixture
def session(mlx: Any, tiny_mlx: Artifact) -> Iterator[Any]:
    with mlx.run(tiny_mlx, 128) as opened:
        yield opened


def texts(pieces: Any) -> str:
    return "".join(piece.text for piece in pieces)


def copied(artifact: Artifact, to: Path) -> Artifact:
    """The artifact's folder, to be damaged."""
    shutil.copytree(artifact.path, to)
    return dataclasses.replace(artifact, path=to)


def test_tokens_are_the_sources(session: Any, tiny: Path) -> None:
    with open_checkpoint(tiny) as model:
        tokenizer = model.tokenizer
        for text in (TEXT, "", "  two spaces", "🙂 naïve 你好\n\n1871", "<|im_end|> is text"):
            assert session.tokenize(text) == tokenizer.encode(text)
            assert session.detokenize(session.tokenize(text, add_special=False)) == text
        assert session.tokenize("<|im_end|>", add_special=False, parse_special=True) == [2]
        for token in range(session.vocab_size):
            assert session.token_bytes(token) == tokenizer.token_bytes(token)
        assert session.eos_ids == tokenizer.eos_ids
        messages = [{"role": "user", "content": "Who are you, <|im_end|>?"}]
        assert session.apply_chat(messages) == tokenizer.apply_chat(messages)
        assert session.encode_chat(messages) == tokenizer.encode_chat(messages)


def test_logits_are_the_oracles(session: Any, tiny: Path) -> None:
    tokens = session.tokenize(TEXT)[:128]
    with open_checkpoint(tiny) as model:
        expected = np.concatenate(list(Oracle(model.decoder, model.tensors).score(tokens)))
    assert divergence(expected, np.concatenate(list(session.score(tokens)))).max() < 1e-9


def test_every_way_to_the_last_position_agrees(session: Any) -> None:
    tokens = session.tokenize(PROMPT)
    scored = np.concatenate(list(session.score(tokens)))
    whole = session.context().prefill(tokens)
    session.context().reset()
    session.context().prefill(tokens[:-2])
    session.context().step(tokens[-2])
    stepped = session.context().step(tokens[-1])
    assert scored.shape == (len(tokens), session.vocab_size)
    assert scored.dtype == whole.dtype == np.float32
    np.testing.assert_allclose(whole, scored[-1], atol=1e-3)
    np.testing.assert_allclose(stepped, whole, atol=1e-3)
    assert list(session.context().tokens) == tokens


def test_logits_are_the_callers_to_keep(session: Any) -> None:
    first = session.context().prefill([5, 6])
    kept = first.copy()
    session.context().step(7)
    assert np.array_equal(first, kept)
    first[:] = 0
    assert first.flags.writeable


def test_scoring_holds_few_logits_and_leaves_the_context_empty(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SCORED_BYTES", 3 * 4 * session.vocab_size)
    session.context().prefill([5, 6, 7])
    tokens = session.tokenize(PROMPT)[:8]
    assert [len(chunk) for chunk in session.score(tokens)] == [3, 3, 2]
    assert session.context().position == 0
    stream = session.score(tokens)
    next(stream)
    stream.close()
    assert session.context().position == 0


def test_a_scoring_goes_on_only_where_it_stopped(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its second half would follow on whatever was computed in between."""
    monkeypatch.setattr(sessions, "SCORED_BYTES", 3 * 4 * session.vocab_size)
    for between in ([5, 6], [5, 6, 7]):  # the latter as many as were scored
        stream = session.score([10, 11, 12, 13, 14])
        assert len(next(stream)) == 3
        session.context().prefill(between)
        with pytest.raises(BadRequest, match="used while it scored"):
            next(stream)
        assert session.context().position == 0


def test_rewinding_and_resetting_forget(session: Any) -> None:
    context = session.context()
    fresh = context.prefill([5, 6, 7])
    context.step(8)
    context.rewind(2)
    assert list(context.tokens) == [5, 6]
    np.testing.assert_allclose(context.step(7), fresh, atol=1e-3)
    again = context.step(9)
    context.rewind(1)
    assert np.array_equal(context.step(9), again)
    context.reset()
    assert np.array_equal(context.prefill([5, 6, 7]), fresh)
    with pytest.raises(BadRequest):
        context.rewind(4)


def test_a_seed_repeats_itself_and_another_does_not(session: Any) -> None:
    prompt = session.tokenize(PROMPT)

    def answer(seed: int) -> list[int]:
        sampling = Sampling(temperature=1.0, top_k=0, top_p=1.0, seed=seed)
        return [p.token for p in session.generate(prompt, max_tokens=16, sampling=sampling)]

    assert answer(7) == answer(7)
    assert answer(7) != answer(8)


def test_stop_strings_end_and_do_not_show(session: Any) -> None:
    prompt = session.tokenize(PROMPT)
    whole = texts(session.generate(prompt, max_tokens=16, sampling=GREEDY))
    stop = whole[4:7]
    pieces = list(session.generate(prompt, max_tokens=16, sampling=GREEDY, stop=[stop]))
    assert pieces[-1].finish == "stop"
    assert texts(pieces) == whole[: whole.index(stop)]


def test_closing_the_stream_cancels(session: Any) -> None:
    prompt = session.tokenize(PROMPT)
    stream = session.generate(prompt, sampling=GREEDY)
    next(stream)
    stream.close()
    assert session.context().position == len(prompt)
    assert next(session.generate(prompt, max_tokens=1, sampling=GREEDY)).token >= 0


def test_a_chats_earlier_turns_are_not_computed_again(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX's users know it as the prompt cache."""
    prompt = session.tokenize(PROMPT)
    answer = [p.token for p in session.generate(prompt, max_tokens=6, sampling=GREEDY) if p.token >= 0]
    longer = [*prompt, *answer, *session.tokenize(" and the sea", add_special=False)]
    fresh = list(session.generate(longer, max_tokens=6, sampling=GREEDY))
    list(session.generate(prompt, max_tokens=6, sampling=GREEDY))
    computed: list[int] = []
    network = session.context().network
    append = network.append
    monkeypatch.setattr(network, "append", lambda ids, keep: (computed.append(len(ids)), append(ids, keep))[1])
    assert list(session.generate(longer, max_tokens=6, sampling=GREEDY, reuse_cache=True)) == fresh
    assert computed[0] < len(longer) - len(prompt)
    computed.clear()
    other = [*prompt[:-1], 7]  # another turn after the same beginning
    list(session.generate(other, max_tokens=1, sampling=GREEDY, reuse_cache=True))
    assert computed == [1]


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), RuntimeError("[malloc] Unable to allocate 9 bytes")])
def test_a_prompt_that_was_stopped_is_computed_again_before_what_follows(
    session: Any, fault: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = session.context()
    context.prefill([5, 6, 7])
    expected = context.step(8)
    context.rewind(3)

    def stop(*_: Any) -> None:
        raise fault

    with monkeypatch.context() as patched:
        patched.setattr(mx, "eval", stop)
        with pytest.raises((KeyboardInterrupt, DoesNotFit)):
            context.prefill([9])
    assert list(context.tokens) == [5]
    np.testing.assert_allclose(context.prefill([6, 7, 8]), expected, atol=1e-3)


def test_the_context_is_never_cut(session: Any) -> None:
    too_long = [5] * 129
    for attempt in (
        lambda: session.context().prefill(too_long),
        lambda: session.generate(too_long, max_tokens=1),
        lambda: session.generate([5] * 120, max_tokens=9),
        lambda: session.score(too_long),
    ):
        with pytest.raises(DoesNotFit):
            attempt()
    assert session.context().position == 0
    assert len(list(session.generate([5] * 120, max_tokens=8, sampling=Sampling(seed=1)))) > 1
    with pytest.raises(DoesNotFit):
        for _ in session.generate([5] * 120, sampling=Sampling(temperature=2.0, top_k=0, top_p=1.0, seed=3)):
            pass


def test_a_failed_prefill_leaves_the_cache_as_it_was(session: Any) -> None:
    context = session.context()
    context.prefill([5, 6, 7])
    for bad in ([5] * 126, [session.vocab_size], [-1], [], [1.7], ["5"], [1 << 63], [[5]], np.array([[5, 6]])):
        with pytest.raises((DoesNotFit, BadRequest)):
            context.prefill(bad)
        assert list(context.tokens) == [5, 6, 7]


def test_what_was_trained_for_is_the_limit(mlx: Any, tiny_mlx: Artifact) -> None:
    with mlx.run(tiny_mlx) as session:
        assert session.context_length == 512
    with pytest.raises(DoesNotFit, match="trained for 512"):
        mlx.run(tiny_mlx, 513)


def test_what_cannot_fit_is_refused_before_anything_is_read(
    mlx: Any, tiny_mlx: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = mlx.convert(tiny_llama(tmp_path / "wide", context=2**31 - 1), tmp_path / "out")
    wide = Artifact(tmp_path / "out", "mlx", "text", "mlx", "f16", made.files, id="wide")
    with pytest.raises(DoesNotFit, match=r"KV cache of 2147483647 tokens"):
        mlx.run(wide, 2**31 - 1)
    monkeypatch.setattr(memory, "room", lambda device: 4 << 20)  # 5.2 MB of numbers, as float32
    with pytest.raises(DoesNotFit, match="the model"):
        mlx.run(tiny_mlx, 64)


@pytest.mark.parametrize(
    ("options", "stated"),
    [
        ({}, {"compute": "f32", "kv_cache": "f32", "threads": "1", "device": "cpu", "context": "128"}),
        ({"prefill_step_size": 2}, {"kv_cache": "f32"}),
        ({"unpacked": True}, {"kv_cache": "f32"}),
        ({"kv_bits": 8}, {"kv_cache": "8 bits in groups of 64"}),
        ({"kv_bits": 8, "kv_group_size": 128}, {"kv_cache": "8 bits in groups of 64"}),
        ({"kv_bits": 8, "kv_group_size": 32}, {"kv_cache": "8 bits in groups of 32"}),
    ],
)
def test_options_change_the_way_and_not_the_answer(
    session: Any, mlx: Any, tiny_mlx: Artifact, options: Any, stated: dict[str, str]
) -> None:
    tokens = session.tokenize(PROMPT)
    expected = session.context().prefill(tokens)
    with mlx.run(tiny_mlx, 128, **options) as other:
        found = other.context().prefill(tokens)
        assert other.conditions.items() >= stated.items()
    exact = "kv_bits" not in options
    assert divergence(expected[None], found[None]).max() < (1e-9 if exact else 0.05)


def test_threads_share_the_matrices_and_say_how_many_they_are(mlx: Any, session: Any, tiny_mlx: Artifact) -> None:
    tokens = session.tokenize(PROMPT)
    expected = session.context().prefill(tokens)
    with sessions.open_session(tiny_mlx, "cpu", 128, 3, {}) as other:
        assert other.conditions["threads"] == "3"
        assert divergence(expected[None], other.context().prefill(tokens)[None]).max() < 1e-9
    for threads in (0, 513):
        with pytest.raises(BadRequest, match="threads"):
            sessions.open_session(tiny_mlx, "cpu", 128, threads, {})


def test_float32_on_a_gpu_is_float32_unless_somebody_wants_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, stated in (("0", "f32"), ("1", "tf32")):
        monkeypatch.setenv("MLX_ENABLE_TF32", value)
        assert opening._compute("gpu", mx.float32) == stated
        assert opening._compute("gpu", mx.bfloat16) == "bf16"
        assert opening._compute("cpu", mx.float32) == "f32"


def test_placement_is_known_once_it_computed(session: Any) -> None:
    session.context().prefill([5] * 64)
    assert session.placement.source is PlacementSource.RUNTIME_ASSIGNMENT
    assert session.placement.share("cpu") == 1.0
    session.close()
    assert session.placement.share("cpu") == 1.0


def test_a_closed_session_says_so(mlx: Any, tiny_mlx: Artifact) -> None:
    session = mlx.run(tiny_mlx, 64)
    context = session.context()
    session.close()
    session.close()
    for call in (
        session.context,
        lambda: context.prefill([5]),
        lambda: session.tokenize("a"),
        context.reset,
        lambda: next(session.score([5])),
    ):
        with pytest.raises(BadRequest, match="closed"):
            call()


def test_closing_gives_back_weights_though_the_session_is_still_held(mlx: Any, tiny_mlx: Artifact) -> None:
    before = mx.get_active_memory()
    held = mlx.run(tiny_mlx, 64)
    held.context().prefill([5])
    model = weakref.ref(held.context().network.model)
    assert mx.get_active_memory() > before + (4 << 20)
    held.close()
    assert model() is None
    assert mx.get_active_memory() <= before


def test_a_session_serves_any_thread_and_one_at_a_time(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX's streams belong to threads: what was not computed where it was described never is."""
    tokens = session.tokenize(PROMPT)
    expected = session.context().prefill(tokens)
    found: list[Any] = []

    def compute() -> None:
        session.context().reset()
        try:
            found.append(session.context().prefill(tokens))
        except EdgecoreError as error:
            found.append(error)

    def in_a_thread() -> None:
        thread = threading.Thread(target=compute)
        thread.start()
        thread.join()

    in_a_thread()
    assert np.array_equal(found.pop(), expected)
    session.context().reset()
    assert np.array_equal(session.context().prefill(tokens), expected)
    evaluate = mx.eval

    def meanwhile(*arrays: Any) -> None:
        monkeypatch.setattr(mx, "eval", evaluate)
        in_a_thread()
        evaluate(*arrays)

    monkeypatch.setattr(mx, "eval", meanwhile)
    session.context().step(5)
    (error,) = found
    assert isinstance(error, BadRequest)
    assert "another thread" in error.what


def test_a_worker_gives_the_same_answers(session: Any, tiny_mlx: Artifact) -> None:
    prompt = session.tokenize(PROMPT)
    ways = [GREEDY, Sampling(temperature=1.0, seed=5)]
    expected = [list(session.generate(prompt, max_tokens=8, sampling=way, stop=["zz"])) for way in ways]
    with edgecore.open(tiny_mlx.path, backend="mlx", device="cpu", context_length=128) as other:
        assert [list(other.generate(prompt, max_tokens=8, sampling=way, stop=["zz"])) for way in ways] == expected
        stream = other.generate(prompt, sampling=GREEDY)
        assert next(stream) == expected[0][0]
        stream.close()
        assert list(other.generate(prompt, max_tokens=8, sampling=GREEDY, reuse_cache=True)) == expected[0]


def test_a_native_folder_runs_where_it_lies(mlx: Any, tiny_mlx: Artifact) -> None:
    native = dataclasses.replace(tiny_mlx, id="", files=(), precision="", context_length=0)
    with mlx.run(native, 64) as session:
        assert session.context().prefill([5, 6]).shape == (session.vocab_size,)
    with mlx.run(native) as session:
        assert session.context_length == 512


def test_damaged_folders_are_typed_errors(mlx: Any, tiny_mlx: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="gone"):
        mlx.run(dataclasses.replace(tiny_mlx, path=tmp_path / "gone"))
    mute = copied(tiny_mlx, tmp_path / "mute")
    (mute.path / "tokenizer.json").unlink()
    with pytest.raises((ModelNotFound, CorruptModel), match="tokenizer"):
        mlx.run(mute)
    with pytest.raises(DeviceUnavailable, match="npu"):
        mlx.run(tiny_mlx, device="npu")


def test_a_model_without_a_template_cannot_chat(mlx: Any, tiny_mlx: Artifact, tmp_path: Path) -> None:
    plain = copied(tiny_mlx, tmp_path / "plain")
    (plain.path / "chat_template.jinja").unlink(missing_ok=True)
    config = plain.path / "tokenizer_config.json"
    values = json.loads(config.read_text())
    values.pop("chat_template", None)
    config.write_text(json.dumps(values))
    with mlx.run(plain, 64) as session, pytest.raises(CannotDo, match="chat template"):
        session.apply_chat([{"role": "user", "content": "hello"}])
