"""The text fixtures: published digests, tokenizers that work, a model that has learnt something that can be lost."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from edgecore import registry
from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.contract.errors import BadRequest
from edgecore_conformance import fixtures
from edgecore_conformance.checks.text_common import border
from edgecore_conformance.fixtures import made, random_models
from edgecore_conformance.fixtures.numbers import bell, bits, ternary
from edgecore_conformance.known import Known

TEXT = "The keeper wrote: 12 naïve ships, at 04:15.\n  Привет 🙂"
EVERY = (*fixtures.families(), *fixtures.variants())
BITS = ["0x186fa85127efde21", "0x9f054dae061453c8", "0x497e1b4b2c13410b"]
BELL = "a2f517f2f296ede577ae82795c40dafc4c19292237a5d586640002182cacb4a5"
every_checkpoint = pytest.mark.parametrize("name", EVERY)


def logits_of(folder: Path, tokens: list[int]) -> np.ndarray:
    with open_checkpoint(folder) as model:
        return np.concatenate(list(Oracle(model.decoder, model.tensors).score(tokens)))


def random_tokens(count: int) -> list[int]:
    return np.random.default_rng(7).integers(0, random_models.VOCAB, count).tolist()


def test_importing_the_fixtures_brings_neither_onnx_nor_a_tokenizer() -> None:
    code = (
        "import sys; from edgecore_conformance import fixtures; fixtures.families(); fixtures.language_model();"
        "print([m for m in ('onnx', 'tokenizers', 'safetensors', 'edgecore.sources') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_bits_of_the_generator_are_those_that_were_published() -> None:
    """NEP 19 promises them; were they to change, every checkpoint would."""
    assert [hex(int(word)) for word in bits("edgecore", 3)] == BITS
    assert hashlib.sha256(bell("edgecore", (64, 256), 0.125).tobytes()).hexdigest() == BELL


def test_the_bell_has_the_deviation_and_mean_that_were_asked_for() -> None:
    drawn = bell("any", (1000, 256), 0.5, 3.0)
    assert drawn.dtype == np.float32
    assert drawn.std() == pytest.approx(0.5, rel=0.01)
    assert drawn.mean() == pytest.approx(3.0, abs=0.01)


def test_ternary_weights_are_packed_as_the_neutral_model_unpacks_them() -> None:
    packed = ternary("any", (8, 256))
    assert packed.shape == (2, 256)
    values = np.concatenate([packed >> shift & 3 for shift in (0, 2, 4, 6)]).astype(int) - 1
    assert set(np.unique(values)) == {-1, 0, 1}


def test_there_is_a_checkpoint_for_each_family_that_the_neutral_model_knows() -> None:
    from edgecore.checkpoint.families import known

    assert set(fixtures.families()) == {family.name for family in known()}


@every_checkpoint
def test_a_checkpoint_is_made_once_and_is_what_was_published(name: str, edgecore_home: Path) -> None:
    folder = fixtures.family(name)
    assert folder.is_relative_to(edgecore_home)
    assert made.digest_of(folder) == {**random_models.RECIPES, **random_models.VARIANTS}[name].digest
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert fixtures.family(name) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert [f.name for f in folder.parent.iterdir()] == [folder.name]


@every_checkpoint
def test_a_checkpoint_is_of_its_family_with_rows_that_block_quantizers_can_hold(name: str) -> None:
    with open_checkpoint(fixtures.family(name)) as model:
        assert model.decoder.family == name.partition("-")[0]
        assert (model.decoder.vocab_size, model.decoder.context_length) == (512, 512)
        assert not [t.name for t in model.tensors.values() if len(t.shape) > 1 and t.shape[-1] % 256]


@every_checkpoint
def test_answers_of_a_checkpoint_differ_by_position_and_are_spread_as_those_of_a_trained_model(name: str) -> None:
    tokens = random_tokens(48)
    logits = logits_of(fixtures.family(name), tokens)
    assert 3.5 < logits.std() < 4.5
    assert sum(int(row.argmax()) == token for row, token in zip(logits, tokens, strict=True)) < 5
    other = logits_of(fixtures.family(name), [tokens[0] ^ 1, *tokens[1:]])
    reach = 0 if name == "mistral-window" else 1
    assert (np.abs(logits[-1] - other[-1]).max() > 0.5) == bool(reach), "what the first token says at the last"


@every_checkpoint
def test_a_checkpoint_has_a_tokenizer_that_gives_back_what_it_was_given(name: str) -> None:
    with open_checkpoint(fixtures.family(name)) as model:
        tokenizer = model.tokenizer
        assert tokenizer.vocab_size == 512
        assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
        assert tokenizer.eos_ids
        assert model.chat_template


def test_the_families_come_with_the_kinds_of_tokenizer_that_they_have_in_life() -> None:
    kinds = {}
    for name in fixtures.families():
        with open_checkpoint(fixtures.family(name)) as model:
            kinds[name] = (model.tokenizer.model, model.tokenizer.pre, model.tokenizer.add_space_prefix)
    assert kinds["llama"] == kinds["bitnet"] == ("gpt2", "llama-bpe", False)
    assert kinds["mistral"] == ("llama", "default", True)
    assert kinds["gemma3"] == ("llama", "default", False)
    assert kinds["qwen2"] == kinds["qwen3"] == ("gpt2", "qwen2", False)
    assert kinds["phi3"] == ("gpt2", "gpt-4o", False)


def test_a_space_stands_behind_every_special_token_in_mistrals_first_tokenizer_and_not_in_later_ones() -> None:
    """Read as the `tokenizers` library reads the same file, which transformers leaves it to."""
    found = {}
    for name in ("mistral", "mistral-first"):
        folder = fixtures.family(name)
        engine = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        with open_checkpoint(folder) as model:
            for text in ("", " ", TEXT, "</s>a", "<s>a b</s> c</s></s>\nd", "\n<unk>e"):
                assert model.tokenizer.encode(text, True, True) == engine.encode(text).ids
                assert model.tokenizer.encode(text, False, True) == engine.encode(text, add_special_tokens=False).ids
            found[name] = [model.tokenizer.tokens[i] for i in model.tokenizer.encode("a</s>a</s> a", False, True)]
    assert found["mistral"] == ["▁a", "</s>", "▁a", "</s>", "▁", "▁a"]
    assert found["mistral-first"] == ["▁a", "</s>", "a", "</s>", "▁a"]


def test_phi3_has_a_second_set_of_rotary_factors_for_texts_within_its_context() -> None:
    known = Known(registry.find("reference").ready_manifest, "cpu")
    assert {name for name in EVERY if border(known, name)} == {"phi3"}
    assert border(known, "phi3") == random_models.BORDER < random_models.CONTEXT
    tokens = random_tokens(random_models.BORDER + 1)
    shorter, longer = (logits_of(fixtures.family("phi3"), tokens[:count]) for count in (len(tokens) - 1, len(tokens)))
    assert np.abs(shorter[-1] - longer[-2]).max() > 1


def test_a_checkpoint_that_somebody_wrote_into_is_made_anew() -> None:
    folder = fixtures.family("qwen2")
    (folder / "config.json").write_text("{}")
    made._checked.clear()  # another process comes
    assert fixtures.family("qwen2") == folder
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen2"


def test_another_digest_than_the_published_one_is_an_error_and_leaves_nothing(edgecore_home: Path) -> None:
    recipe = random_models.RECIPES["qwen2"]
    with pytest.raises(RuntimeError, match="published"):
        made.made("qwen2", "0" * 64, list, lambda: random_models.settings_of(recipe))
    assert not list((edgecore_home / "conformance").iterdir())


def test_an_unknown_family_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(BadRequest, match="bitnet-packed"):
        fixtures.family("gpt2")


def test_the_packed_bitnet_is_what_was_published_of_bitnet_and_the_plain_one_what_llama_cpp_computes() -> None:
    from edgecore.checkpoint import Activation

    with open_checkpoint(fixtures.family("bitnet-packed")) as model:
        assert (model.decoder.activation, model.decoder.int8_activations) == (Activation.RELU2, True)
    with open_checkpoint(fixtures.family("bitnet")) as model:
        assert (model.decoder.activation, model.decoder.int8_activations) == (Activation.SILU, False)


def test_the_suite_has_a_digest_that_does_not_depend_on_the_process() -> None:
    code = "from edgecore_conformance import fixtures; print(fixtures.suite_digest())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fixtures.suite_digest()
    assert len(fixtures.suite_digest()) == 64


def test_a_real_model_may_be_one_that_lies_here(tmp_path: Path) -> None:
    assert fixtures.real_model(fixtures.family("llama")) == fixtures.family("llama").resolve()
