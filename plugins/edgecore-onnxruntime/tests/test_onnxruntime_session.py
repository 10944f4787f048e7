"""A text folder as a text backend keeps the contract: the same answers whole, chunked or stepped, and typed errors."""

from __future__ import annotations

import dataclasses
import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.contract import (
    GREEDY,
    Artifact,
    BadRequest,
    CannotDo,
    CorruptModel,
    DoesNotFit,
    ModelNotFound,
    PlacementSource,
    Sampling,
    UnsupportedModel,
)
from edgecore_onnxruntime import network as networks
from edgecore_onnxruntime import session as sessions

from support.tiny import TEXT

PROMPT = "The lighthouse keeper wrote one line"


@pytest.fixture
def session(onnxruntime: Any, tiny_onnx: Artifact) -> Iterator[Any]:
    with onnxruntime.run(tiny_onnx, 128) as opened:
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
    found = np.concatenate(list(session.score(tokens)))
    p, q = (x - np.log(np.exp(x.astype(np.float64)).sum(-1, keepdims=True)) for x in (expected, found))
    assert (np.exp(p) * (p - q)).sum(-1).mean() < 1e-4  # the gate for kernels that compute in float32


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
    np.testing.assert_allclose(whole, scored[-1], atol=0.05)
    np.testing.assert_allclose(stepped, whole, atol=0.05)
    assert list(session.context().tokens) == tokens


def test_logits_are_the_callers_to_keep(session: Any) -> None:
    first = session.context().prefill([5, 6])
    kept = first.copy()
    session.context().step(7)
    assert np.array_equal(first, kept)


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
    np.testing.assert_allclose(context.step(7), fresh, atol=0.05)
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
    prompt = session.tokenize(PROMPT)
    answer = [p.token for p in session.generate(prompt, max_tokens=6, sampling=GREEDY) if p.token >= 0]
    longer = [*prompt, *answer, *session.tokenize(" and the sea", add_special=False)]
    fresh = list(session.generate(longer, max_tokens=6, sampling=GREEDY))
    list(session.generate(prompt, max_tokens=6, sampling=GREEDY))
    computed: list[int] = []
    network = session.context().network
    append = network.append
    monkeypatch.setattr(network, "append", lambda ids, *more: (computed.append(len(ids)), append(ids, *more))[1])
    assert list(session.generate(longer, max_tokens=6, sampling=GREEDY, reuse_cache=True)) == fresh
    assert computed[0] < len(longer) - len(prompt)


def test_a_prompt_that_was_stopped_is_computed_again_before_what_follows(
    session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = session.context()
    context.prefill([5, 6, 7])
    expected = context.step(8)
    context.rewind(1)

    def stop() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(context.network, "_infer", stop)
        with pytest.raises(KeyboardInterrupt):
            context.step(8)
    assert list(context.tokens) == [5, 6, 7]
    np.testing.assert_allclose(context.step(8), expected, atol=0.05)


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


def test_what_was_trained_for_is_the_limit(onnxruntime: Any, tiny_onnx: Artifact) -> None:
    with onnxruntime.run(tiny_onnx) as session:
        assert session.context_length == 512
    with pytest.raises(DoesNotFit, match="trained for 512"):
        onnxruntime.run(tiny_onnx, 513)


def test_a_cache_larger_than_the_machine_is_refused_before_anything_is_computed(
    onnxruntime: Any, tiny_onnx: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "usable_memory", lambda: (1 << 16, 1 << 16))
    with pytest.raises(DoesNotFit, match="KV cache of 512 tokens"):
        onnxruntime.run(tiny_onnx, 512)


@pytest.mark.parametrize("options", [{"spinning": False}, *({"graph_optimization": o} for o in ("none", "extended"))])
def test_options_change_the_way_and_not_the_answer(
    session: Any, onnxruntime: Any, tiny_onnx: Artifact, options: Any
) -> None:
    tokens = session.tokenize(PROMPT)
    expected = session.context().prefill(tokens)
    with onnxruntime.run(tiny_onnx, 128, **options) as other:
        np.testing.assert_allclose(other.context().prefill(tokens), expected, atol=1e-3)


def test_conditions_and_placement_are_the_sessions_own_words(session: Any) -> None:
    assert session.placement.source is PlacementSource.RUNTIME_ASSIGNMENT
    assert session.placement.share("cpu") == 1.0
    assert dict(session.conditions) == {
        "device": "cpu", "threads": "1", "context": "128", "compute": "f32", "kv_cache": "f32",
    }  # fmt: skip


def test_a_closed_session_says_so(onnxruntime: Any, tiny_onnx: Artifact) -> None:
    session = onnxruntime.run(tiny_onnx, 64)
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


def test_closing_gives_back_the_cache_though_the_session_is_still_held(onnxruntime: Any, tiny_onnx: Artifact) -> None:
    """Python finds cycles late: until then each session that was closed would keep its threads and its KV cache."""
    held = onnxruntime.run(tiny_onnx, 64)
    held.context().prefill([5])
    inference = weakref.ref(held.context().network.session)
    held.close()
    assert inference() is None


def test_a_second_thread_is_told_that_the_session_computes(session: Any) -> None:
    context = session.context()
    context.prefill([5, 6])
    expected = context.step(7)
    context.rewind(1)
    with context.network._computes, pytest.raises(BadRequest, match="another thread"):
        context.step(7)
    assert np.array_equal(context.step(7), expected)
    context.rewind(1)
    before = context.network.filled
    with context.network._computes, pytest.raises(BadRequest, match="another thread"):
        context.step(7)
    assert context.network.filled == before, "what the first thread has computed so far is still there"


def test_two_sessions_of_one_model_do_not_know_of_each_other(
    session: Any, onnxruntime: Any, tiny_onnx: Artifact
) -> None:
    expected = session.context().prefill([5, 6, 7])
    with onnxruntime.run(tiny_onnx, 64) as other, ThreadPoolExecutor(2) as pool:

        def stepped(one: Any) -> np.ndarray:
            context = one.context()
            for _ in range(20):
                context.reset()
                context.prefill([5, 6])
                found = context.step(7)
            return found

        for found in pool.map(stepped, (session, other)):
            np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_native_folder_runs_where_it_lies(onnxruntime: Any, tiny_onnx: Artifact) -> None:
    native = dataclasses.replace(tiny_onnx, id="", files=(), precision="", context_length=0)
    with onnxruntime.run(native, 64) as session:
        assert session.context().prefill([5, 6]).shape == (session.vocab_size,)
    with onnxruntime.run(native) as session:
        assert session.context_length == 512


def test_a_graph_whose_tables_hold_less_than_was_trained_is_the_limit(
    onnxruntime: Any, tiny_onnx: Artifact, tmp_path: Path
) -> None:
    short = copied(tiny_onnx, tmp_path / "short")
    config = json.loads((short.path / "genai_config.json").read_text())
    config["model"]["context_length"] = 100
    (short.path / "genai_config.json").write_text(json.dumps(config))
    with onnxruntime.run(short) as session:
        assert session.context_length == 100


def test_what_genai_config_calls_an_end_is_one(onnxruntime: Any, tiny_onnx: Artifact, tmp_path: Path) -> None:
    changed = copied(tiny_onnx, tmp_path / "ends")
    config = json.loads((changed.path / "genai_config.json").read_text())
    with onnxruntime.run(tiny_onnx, 64) as session:
        usual = session.eos_ids
    config["model"]["eos_token_id"] = [77]
    (changed.path / "genai_config.json").write_text(json.dumps(config))
    with onnxruntime.run(changed, 64) as session:
        assert session.eos_ids == usual | {77}


def test_damaged_folders_are_typed_errors(onnxruntime: Any, tiny_onnx: Artifact, tmp_path: Path) -> None:
    missing = copied(tiny_onnx, tmp_path / "missing")
    (missing.path / "model.onnx.data").unlink()
    with pytest.raises(CorruptModel, match=r"model\.onnx\.data, which is not beside it"):
        onnxruntime.run(missing)
    cut = copied(tiny_onnx, tmp_path / "cut")
    weights = cut.path / "model.onnx.data"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CorruptModel, match=r"model\.onnx\.data holds 1,000 bytes.*truncated"):
        onnxruntime.run(cut)
    mute = copied(tiny_onnx, tmp_path / "mute")
    (mute.path / "tokenizer.json").unlink()
    with pytest.raises((ModelNotFound, CorruptModel), match="tokenizer"):
        onnxruntime.run(mute)
    bare = copied(tiny_onnx, tmp_path / "bare")
    (bare.path / "genai_config.json").unlink()
    with pytest.raises(ModelNotFound, match=r"genai_config\.json"):
        onnxruntime.run(dataclasses.replace(bare, id=""))


def changed_config(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Of the decoder, or with a dot of a part of it."""

    def change(decoder: dict[str, Any]) -> None:
        part, _, name = key.rpartition(".")
        (decoder[part] if part else decoder)[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "kind", "named"),
    [
        (changed_config("filename", "../model.onnx"), CorruptModel, "filename.*no file of the folder"),
        (changed_config("filename", "/etc/passwd"), CorruptModel, "filename.*no file of the folder"),
        (changed_config("filename", "a" * 5000), CorruptModel, "filename.*no file of the folder"),
        (changed_config("filename", "other.onnx"), CorruptModel, r"other\.onnx does not exist"),
        (changed_config("num_hidden_layers", 10**9), CorruptModel, "num_hidden_layers"),
        (changed_config("num_hidden_layers", 3), UnsupportedModel, r"without past_key_values\.2\.key"),
        (changed_config("head_size", "64"), CorruptModel, "head_size"),
        (changed_config("inputs.past_key_names", "other.%d"), UnsupportedModel, r"without other\.0"),
        (changed_config("inputs.past_key_names", "%s%n%d"), UnsupportedModel, "without %s%n0"),
        (changed_config("pipeline", [{}]), UnsupportedModel, "several graphs"),
    ],
)
def test_a_genai_config_that_speaks_of_another_model_is_refused(
    onnxruntime: Any, tiny_onnx: Artifact, tmp_path: Path, change: Any, kind: type[Exception], named: str
) -> None:
    other = copied(tiny_onnx, tmp_path / "other")
    config = json.loads((other.path / "genai_config.json").read_text())
    change(config["model"]["decoder"])
    (other.path / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(kind, match=named):
        onnxruntime.run(other)


def test_a_model_without_a_template_cannot_chat(onnxruntime: Any, tiny_onnx: Artifact, tmp_path: Path) -> None:
    plain = copied(tiny_onnx, tmp_path / "plain")
    (plain.path / "chat_template.jinja").unlink(missing_ok=True)
    config = plain.path / "tokenizer_config.json"
    values = json.loads(config.read_text())
    values.pop("chat_template", None)
    config.write_text(json.dumps(values))
    with onnxruntime.run(plain, 64) as session, pytest.raises(CannotDo, match="chat template"):
        session.apply_chat([{"role": "user", "content": "hello"}])
