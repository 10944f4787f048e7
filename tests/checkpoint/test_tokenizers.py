"""Token ids are the original's: llama.cpp's own vectors, and the same from tokenizer.json and GGUF metadata."""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, processors, trainers
from tokenizers import Tokenizer as Engine

from edgecore.checkpoint import Checkpoint, Tokenizer, TokenType, open_checkpoint
from edgecore.checkpoint.gguf_file import read_gguf
from edgecore.checkpoint.tokenizer import end_ids
from edgecore.checkpoint.tokenizer_gguf import tokenizer_from_gguf
from edgecore.checkpoint.tokenizer_kind import gguf_kind
from edgecore.contract.errors import BadRequest, CorruptModel, ModelNotFound, UnsupportedModel

from support.gguf_files import write_gguf, write_vocabulary
from support.tiny import TEXT, tiny_llama
from support.vectors import hold_to_vectors

VECTORS = Path(__file__).parent / "vectors"
HARD = [
    TEXT, "", " ", "  two  spaces ", "\n\n\t\r\n", "1234567890 ٣٤٥", "naïve façade Übung", "Привет 你好 नमस्ते שלום",
    "🙂👩‍👩‍👧‍👦🇩🇪", "def f(x):\n\treturn x**2  # ²", "it's we'll I'VE", "\x00\x7f\u200b\ufeff",
    "<|im_end|> and <s></s> <unk> <0x0A>",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["gpt-2", "phi-3"])
def test_ids_are_those_of_llama_cpp(kind: str, tmp_path: Path) -> None:
    """The other vocabularies: test_against_llama_cpp_vocabularies.py."""
    vocabulary = tmp_path / f"ggml-vocab-{kind}.gguf"
    vocabulary.write_bytes(lzma.decompress((VECTORS / f"{vocabulary.name}.xz").read_bytes()))
    hold_to_vectors(vocabulary, VECTORS, kind)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(tiny_llama(tmp_path_factory.mktemp("tiny"), vocab=512))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Llama 2's kind: byte fallback, `▁` for the space, one put before the text, BOS."""
    folder = tiny_llama(tmp_path_factory.mktemp("spm"), vocab=600)
    trained = Engine(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [word for line in TEXT.splitlines() for word in line.split() if word.isascii()]
    trained.train_from_iterator(words, trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False))
    spec = json.loads(trained.to_str())
    spec["added_tokens"] = []
    engine = Engine.from_str(json.dumps(spec))
    engine.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    engine.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    engine.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    engine.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return open_checkpoint(folder)


@pytest.mark.parametrize("text", HARD)
@pytest.mark.parametrize("kind", ["tiny", "sentencepiece"])
def test_a_gguf_file_and_the_folder_it_came_from_give_the_same_ids(
    kind: str, text: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source: Checkpoint = request.getfixturevalue(kind)
    engine = Engine.from_file(str(source.path / "tokenizer.json"))
    engine.encode_special_tokens = True
    with open_checkpoint(write_gguf(source, tmp_path / "model.gguf")) as copy:
        for special in (True, False):
            ids = source.tokenizer.encode(text, add_special=special)
            assert ids == engine.encode(text, add_special_tokens=special).ids
            assert ids == copy.tokenizer.encode(text, add_special=special)
        assert source.tokenizer.decode(ids) == copy.tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", ["tiny", "sentencepiece"])
def test_a_gguf_file_carries_the_whole_vocabulary(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source: Checkpoint = request.getfixturevalue(kind)
    with open_checkpoint(write_gguf(source, tmp_path / "model.gguf")) as copy:
        ours, theirs = source.tokenizer.vocabulary, copy.tokenizer.vocabulary
        for field in (
            "model",
            "tokens",
            "types",
            "pre",
            "merges",
            "scores",
            "special",
            "eos_ids",
            "add_bos",
            "add_eos",
        ):
            assert getattr(ours, field) == getattr(theirs, field), field
        assert copy.chat_template == source.chat_template == source.tokenizer.chat_template


@pytest.mark.parametrize("key", ["eos_token_id", "eot_token_id", "eom_token_id"])
def test_every_end_that_a_gguf_file_declares_ends_a_generation(key: str, tiny: Checkpoint, tmp_path: Path) -> None:
    """Code Llama's end of turn is declared by its own key alone; its text tells nothing."""
    file = write_vocabulary(tiny.tokenizer.vocabulary, tmp_path / "model.gguf")
    metadata = {**read_gguf(file)[0].metadata, f"tokenizer.ggml.{key}": 300}
    assert 300 in tokenizer_from_gguf(file, metadata).eos_ids
    outside = {**metadata, f"tokenizer.ggml.{key}": 2**32 - 1}
    assert tokenizer_from_gguf(file, outside).eos_ids <= tiny.tokenizer.eos_ids


@pytest.mark.parametrize("text", ["<|calls|>", "<|flush|>", "<turn|>", "<|tool_response>", "[e~[", "<EOT>"])
def test_a_special_token_with_the_text_of_an_end_is_one_whatever_was_declared(text: str) -> None:
    tokens = ("a", text, "b")
    special = (TokenType.NORMAL, TokenType.CONTROL, TokenType.NORMAL)
    assert end_ids(tokens, special, {2}) == {1, 2}
    assert end_ids(tokens, (TokenType.NORMAL,) * 3, {2}) == {2}


def test_a_gguf_file_older_than_the_pre_tokenizers_name_is_told_from_one_that_names_it_default(tmp_path: Path) -> None:
    metadata = {"tokenizer.ggml.model": "gpt2"}
    with pytest.raises(UnsupportedModel, match="is missing: the file is older than the field"):
        gguf_kind(tmp_path / "m.gguf", metadata)
    with pytest.raises(UnsupportedModel, match="'default'"):
        gguf_kind(tmp_path / "m.gguf", {**metadata, "tokenizer.ggml.pre": "default"})


def test_special_tokens_in_text_are_plain_text_unless_asked(tiny: Checkpoint) -> None:
    tokenizer = tiny.tokenizer
    plain = tokenizer.encode("a<|im_end|>b")
    assert 2 not in plain
    assert tokenizer.decode(plain) == "a<|im_end|>b"
    asked = tokenizer.encode("a<|im_end|>b", parse_special=True)
    assert asked == [*tokenizer.encode("a"), 2, *tokenizer.encode("b")]


def test_a_user_defined_token_is_always_found(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    engine = Engine.from_file(str(folder / "tokenizer.json"))
    name = engine.id_to_token(500)
    assert name is not None
    spec = json.loads(engine.to_str())
    added = {"id": 500, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    spec["added_tokens"].append({**added, "special": False})
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = open_checkpoint(folder).tokenizer
    assert tokenizer.types[500] is TokenType.USER_DEFINED
    assert 500 in tokenizer.encode(name)


def test_bytes_of_single_tokens_add_up_to_the_text(tiny: Checkpoint, sentencepiece: Checkpoint) -> None:
    text = "naïve 🙂 Привет"
    for model, before in ((tiny, b""), (sentencepiece, b" ")):
        ids = model.tokenizer.encode(text, add_special=False)
        pieces = [model.tokenizer.token_bytes(i) for i in ids]
        assert b"".join(pieces) == before + text.encode()
        assert any(not _is_utf8(piece) for piece in pieces)


def test_control_tokens_add_no_text(tiny: Checkpoint) -> None:
    assert [tiny.tokenizer.token_bytes(i) for i in range(3)] == [b"", b"", b""]


@pytest.mark.parametrize("token", [-1, 512])
def test_an_id_outside_the_vocabulary_is_refused(tiny: Checkpoint, token: int) -> None:
    with pytest.raises(BadRequest, match="0 to 511"):
        tiny.tokenizer.token_bytes(token)


def test_text_that_utf8_cannot_hold_is_refused(tiny: Checkpoint) -> None:
    with pytest.raises(BadRequest, match="not valid Unicode"):
        tiny.tokenizer.encode("a\ud800b")


def test_every_token_that_ends_a_turn_ends_a_generation(tiny: Checkpoint) -> None:
    assert tiny.tokenizer.bos_id == 1
    assert tiny.tokenizer.eos_ids == {0, 2}  # <|endoftext|> by its text, <|im_end|> as declared


def test_ends_declared_for_generation_are_taken(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert open_checkpoint(folder).tokenizer.eos_ids == {0, 2, 7}


def test_bos_is_added_where_the_model_wants_it(sentencepiece: Checkpoint, tiny: Checkpoint) -> None:
    assert sentencepiece.tokenizer.encode("a")[0] == 1
    assert sentencepiece.tokenizer.encode("a", add_special=False)[0] != 1
    assert tiny.tokenizer.encode("a") == tiny.tokenizer.encode("a", add_special=False)


def test_ids_without_a_token_are_named_as_llama_cpp_names_them(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, vocab=512)
    spec = json.loads((folder / "tokenizer.json").read_text())
    last = spec["model"]["merges"].pop()
    del spec["model"]["vocab"]["".join(last)]
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = open_checkpoint(folder).tokenizer
    assert tokenizer.vocab_size == 512
    assert (tokenizer.tokens[511], tokenizer.types[511]) == ("[PAD511]", TokenType.UNUSED)


def test_other_kinds_of_tokenizer_are_refused_by_name(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    Engine(models.WordPiece({"a": 0})).save(str(folder / "tokenizer.json"))
    with pytest.raises(UnsupportedModel, match="WordPiece"):
        _ = open_checkpoint(folder).tokenizer


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {"type": "BPE"}}', '{"model": 7}'])
def test_a_damaged_tokenizer_file_is_a_typed_error(tmp_path: Path, content: str) -> None:
    folder = tiny_llama(tmp_path)
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(CorruptModel, match=r"tokenizer\.json"):
        _ = open_checkpoint(folder).tokenizer


def test_a_tokenizer_that_knows_more_ids_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "a", vocab=400)
    (folder / "tokenizer.json").write_bytes((tiny_llama(tmp_path / "b") / "tokenizer.json").read_bytes())
    with pytest.raises(CorruptModel, match=r"token id \d+ in a model that has 400"):
        _ = open_checkpoint(folder).tokenizer


def test_a_folder_without_a_tokenizer_still_opens(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    (folder / "tokenizer.json").unlink()
    model = open_checkpoint(folder)
    with pytest.raises(ModelNotFound, match=r"tokenizer\.json"):
        _ = model.tokenizer


def test_opening_does_no_tokenizer_work(tiny: Checkpoint) -> None:
    import subprocess

    code = (
        "import sys; from pathlib import Path; from edgecore.checkpoint import open_checkpoint;"
        "m = open_checkpoint(Path(sys.argv[1])); m.chat_template; m.storage; m.parameters;"
        "sys.exit(any(n in sys.modules for n in ('tokenizers', 'jinja2', 'gguf', 'psutil')))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tiny.path)], check=False).returncode == 0


def test_one_tokenizer_serves_several_threads(tiny: Checkpoint) -> None:
    from concurrent.futures import ThreadPoolExecutor

    tokenizer: Tokenizer = tiny.tokenizer
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: tokenizer.encode("<|im_end|>", parse_special=n % 2 == 0), range(400)))
    assert all((answer == [2]) == (n % 2 == 0) for n, answer in enumerate(answers))


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
