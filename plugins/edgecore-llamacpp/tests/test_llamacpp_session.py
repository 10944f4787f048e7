"""A GGUF file as a text backend keeps the contract: the same answers whole, chunked or stepped, and typed errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecore.checkpoint import open_checkpoint
from edgecore.contract import (
    GREEDY,
    Artifact,
    BadRequest,
    CannotDo,
    CorruptModel,
    DeviceUnavailable,
    DoesNotFit,
    ModelNotFound,
    PlacementSource,
    Sampling,
    TextSession,
    UnsupportedModel,
)
from edgecore_llamacpp import generating
from edgecore_llamacpp import session as sessions
from edgecore_llamacpp.native import libllama

from support.converted import folder_of
from support.tiny import TEXT

PROMPT = "The lighthouse keeper wrote one line"


@pytest.fixture
def session(llama: Any, tiny_gguf: Artifact) -> Iterator[Any]:
    with llama.run(tiny_gguf, 128) as opened:
        yield opened


def texts(pieces: Any) -> str:
    return "".join(piece.text for piece in pieces)


def test_tokens_are_the_neutral_models(session: Any, tiny_gguf: Artifact) -> None:
    with open_checkpoint(tiny_gguf.model) as model:
        tokenizer = model.tokenizer
        for text in (TEXT, "", "  two spaces", "🙂 naïve 你好\n\n1871", "<|im_end|> is text"):
            assert session.tokenize(text) == tokenizer.encode(text)
            assert session.detokenize(session.tokenize(text, add_special=False)) == text
        assert session.tokenize("<|im_end|>", add_special=False, parse_special=True) == [2]
        for token in range(session.vocab_size):
            assert session.token_bytes(token) == tokenizer.token_bytes(token)
        assert session.eos_ids == tokenizer.eos_ids
        messages = [{"role": "user", "content": "Who are you?"}]
        assert session.apply_chat(messages) == tokenizer.apply_chat(messages)


DECOMPOSED = ("cafe\u0301", "\u212b\u2126", "<|im_end|>\u0338a", "<tool>\u0338e\u0301<|im_end|>\u0338", "caf\u00e9")


@pytest.mark.parametrize("composes", [True, False])
def test_characters_are_composed_as_the_models_own_tokenizer_does(
    llama: Any, native: Any, tmp_path: Path, composes: bool
) -> None:
    """llama.cpp takes text as it comes; Qwen's tokenizer composes, that of models distilled into Qwen's does not."""
    source = folder_of("qwen3-tied", Path(__file__).parent / "converted" / "tokenizers" / "bpe-qwen", tmp_path / "in")
    if not composes:
        spec = json.loads((source / "tokenizer.json").read_text())
        (source / "tokenizer.json").write_text(json.dumps({**spec, "normalizer": None}))
    llama.convert(source, tmp_path / "out", "f32")
    with open_checkpoint(source) as model, llama.run(native(tmp_path / "out" / "model.gguf")) as session:
        for text in DECOMPOSED:
            for parse in (False, True):
                assert session.tokenize(text, True, parse) == model.tokenizer.encode(text, True, parse), (text, parse)
        same = session.tokenize("cafe\u0301") == session.tokenize("caf\u00e9")
    assert same == composes


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


def test_rewinding_and_resetting_forget(session: Any) -> None:
    context = session.context()
    fresh = context.prefill([5, 6, 7])
    context.step(8)
    context.rewind(2)
    assert list(context.tokens) == [5, 6]
    np.testing.assert_allclose(context.step(7), fresh, atol=0.05)
    context.reset()
    assert np.array_equal(context.prefill([5, 6, 7]), fresh)
    with pytest.raises(BadRequest):
        context.rewind(4)


def test_the_native_loop_and_the_contracts_agree(session: Any) -> None:
    prompt = session.tokenize(PROMPT)
    native = list(session.generate(prompt, max_tokens=24, sampling=GREEDY))
    general = list(TextSession.generate(session, prompt, max_tokens=24, sampling=GREEDY))
    assert native == general
    assert native[-1].finish == "length"


def test_greedy_is_libllamas_greedy(session: Any) -> None:
    session.context().prefill(session.tokenize(PROMPT))
    low = session.context().low
    sampler = libllama.llama_sampler_init_greedy()
    with generating.chooser(low, GREEDY) as choose:
        assert choose() == libllama.llama_sampler_sample(sampler, low.pointer, -1)
    libllama.llama_sampler_free(sampler)


def test_a_seed_repeats_itself_and_another_does_not(session: Any) -> None:
    prompt = session.tokenize(PROMPT)

    def answer(seed: int) -> list[int]:
        sampling = Sampling(temperature=1.0, top_k=0, top_p=1.0, seed=seed)
        return [p.token for p in session.generate(prompt, max_tokens=16, sampling=sampling)]

    assert answer(7) == answer(7)
    assert answer(7) != answer(8)
    assert answer(2**32 - 1) == answer(2**32 - 1)


def test_sampling_draws_as_often_as_the_logits_say(session: Any) -> None:
    """Top-k 3 at temperature 1: only the three best come, about as often as their probabilities ask for."""
    logits = session.context().prefill(session.tokenize(PROMPT)).astype(np.float64)
    best = np.argsort(-logits)[:3]
    expected = np.exp(logits[best] - logits[best[0]])
    expected /= expected.sum()
    sampling = Sampling(temperature=1.0, top_k=3, top_p=1.0, seed=1)
    with generating.chooser(session.context().low, sampling) as choose:
        drawn = [choose() for _ in range(2000)]
    assert set(drawn) <= {int(token) for token in best}
    np.testing.assert_allclose([drawn.count(int(token)) / 2000 for token in best], expected, atol=0.05)


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
    append = session.context().append
    monkeypatch.setattr(session.context(), "append", lambda tokens: (computed.append(len(tokens)), append(tokens)))
    assert list(session.generate(longer, max_tokens=6, sampling=GREEDY, reuse_cache=True)) == fresh
    assert computed[0] < len(longer) - len(prompt)


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
    for bad in ([5] * 126, [session.vocab_size], [-1], []):
        with pytest.raises((DoesNotFit, BadRequest)):
            context.prefill(bad)
        assert list(context.tokens) == [5, 6, 7]


def test_what_was_trained_for_is_the_limit(llama: Any, tiny_gguf: Artifact) -> None:
    with llama.run(tiny_gguf) as session:
        assert session.context_length == 512
    with pytest.raises(DoesNotFit, match="trained for 512"):
        llama.run(tiny_gguf, 513)


@pytest.mark.parametrize("options", [{"kv_cache": "q8_0"}, {"kv_cache": "f32"}, {"flash_attention": "off"}])
def test_options_change_the_way_and_not_the_answer(session: Any, llama: Any, tiny_gguf: Artifact, options: Any) -> None:
    tokens = session.tokenize(PROMPT)
    expected = session.context().prefill(tokens)
    with llama.run(tiny_gguf, 128, **options) as other:
        found = other.context().prefill(tokens)
        assert other.conditions["kv_cache"] == {"q8_0": "q8_0", "f32": "float32"}.get(
            options.get("kv_cache"), "float16"
        )
    # Small against the logits' own spread.
    assert np.abs(found - expected).max() < 0.1 * expected.std()


def test_where_it_ran_is_the_schedulers_account(session: Any) -> None:
    placement = session.placement
    assert placement.source is PlacementSource.RUNTIME_ASSIGNMENT
    assert placement.share("cpu") == 1.0
    assert "operators in CPU" in placement.detail
    assert session.conditions == {
        "device": "cpu",
        "threads": "1",
        "context": "128",
        "compute": "float32",
        "kv_cache": "float16",
    }


def test_a_closed_session_says_so(llama: Any, tiny_gguf: Artifact) -> None:
    session = llama.run(tiny_gguf, 64)
    context = session.context()
    session.close()
    session.close()
    for call in (session.context, lambda: context.prefill([5]), lambda: session.tokenize("a"), context.reset):
        with pytest.raises(BadRequest, match="closed"):
            call()


def test_what_is_not_a_model_is_a_typed_error(
    llama: Any, tiny_gguf: Artifact, native: Callable[[Path], Artifact], tmp_path: Path
) -> None:
    whole = tiny_gguf.model.read_bytes()
    file = tmp_path / "bad.gguf"
    for damaged in (whole[: len(whole) // 2], whole[:100], b"not a model at all", b""):
        file.write_bytes(damaged)
        with pytest.raises(CorruptModel, match=r"bad\.gguf"):
            llama.run(native(file))
    with pytest.raises(ModelNotFound):
        llama.run(native(tmp_path / "missing.gguf"))
    with pytest.raises(DeviceUnavailable, match="npu"):
        llama.run(tiny_gguf, device="npu")


def test_an_architecture_that_libllama_does_not_know_is_unsupported(
    llama: Any, tiny_gguf: Artifact, native: Callable[[Path], Artifact], tmp_path: Path
) -> None:
    file = tmp_path / "other.gguf"
    file.write_bytes(tiny_gguf.model.read_bytes().replace(b"llama", b"xlama", 1))
    with pytest.raises(UnsupportedModel, match="xlama"):
        llama.run(native(file))


def test_a_model_without_a_template_cannot_chat(
    llama: Any, tiny_gguf: Artifact, native: Callable[[Path], Artifact], tmp_path: Path
) -> None:
    file = tmp_path / "plain.gguf"
    file.write_bytes(
        tiny_gguf.model.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.was_a_template"[:23], 1)
    )
    with llama.run(native(file), 64) as session, pytest.raises(CannotDo, match="chat template"):
        session.apply_chat([{"role": "user", "content": "hello"}])


def test_weights_are_the_files_dequantized(llama: Any, tiny_gguf: Artifact) -> None:
    weights = llama.hook.edgecore_weights(artifact=tiny_gguf)
    with open_checkpoint(tiny_gguf.model) as model:
        assert list(weights) == list(model.tensors)
        name = "model.layers.1.self_attn.q_proj.weight"
        assert np.array_equal(weights[name], model.tensors[name].read())


@pytest.mark.parametrize("count", [-1, 513, 100_000])
def test_threads_that_ggml_cannot_hold_are_refused(count):
    from edgecore_llamacpp.threads import chosen_threads

    with pytest.raises(BadRequest, match=str(count)):
        chosen_threads(count)
