"""Token ids are the original's for tokenizers that Mistral released: tokenizer.model against sentencepiece, Tekken
against tiktoken. Both are in the package mistral-common; nothing of it is installed or run.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edgecore.checkpoint.pretokenizers import PRE_TOKENIZERS
from edgecore.checkpoint.tokenizer import Tokenizer, TokenType, Vocabulary
from edgecore.checkpoint.tokenizer_engine import byte_level
from edgecore.checkpoint.tokenizer_sentencepiece import tokenizer_from_sentencepiece
from edgecore.contract.errors import CorruptModel

from support.lines import LEAST, lines

sentencepiece = pytest.importorskip("sentencepiece", reason="needs sentencepiece: python3 bootstrap.py test --only e2e")
tiktoken = pytest.importorskip("tiktoken", reason="needs tiktoken: python3 bootstrap.py test --only e2e")
pytestmark = [pytest.mark.slow, pytest.mark.network]
RELEASE = "mistral-common==1.13.1"
MODELS = (
    "tokenizer.model.v1", "mistral_instruct_tokenizer_240216.model.v2", "mistral_instruct_tokenizer_240323.model.v3",
    "mistral_instruct_tokenizer_241114.model.v7", "mistral_instruct_tokenizer_241114.model.v7m1",
)  # fmt: skip
TOKENS = 50_000
"""Of Tekken's: the others only take time to prepare."""


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistral")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), RELEASE]
    subprocess.run(command, check=True, timeout=240)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder / "mistral_common" / "data"


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_sentencepieces(name: str, released: Path, tmp_path: Path) -> None:
    data = (released / name).read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(data)
    original = sentencepiece.SentencePieceProcessor(model_proto=data)
    tokenizer = tokenizer_from_sentencepiece(tmp_path, {}, original.vocab_size())
    texts = lines(tokenizer.tokens[:30])
    assert len(texts) >= LEAST
    for text in texts:
        assert tokenizer.encode(text, add_special=False) == original.encode(text), text
        assert tokenizer.decode(original.encode(text)) == original.decode(original.encode(text)), text


@pytest.fixture(scope="module")
def tekken(released: Path) -> dict[str, Any]:
    spec = json.loads((released / "tekken_240911.json").read_text(encoding="utf-8"))
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in spec["vocab"][:TOKENS]}
    from tokenizers.pre_tokenizers import ByteLevel

    def name(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    characters = dict(zip(_BYTES, sorted(ByteLevel.alphabet()), strict=True))
    merges = []
    for token, rank in ranks.items():
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(rank, ranks[a], ranks[b], f"{name(a)} {name(b)}") for a, b in pairs if a in ranks and b in ranks]
        merges += sorted(known)
    return {
        "pattern": spec["config"]["pattern"],
        "ranks": ranks,
        "tokens": tuple(name(token) for token in ranks),
        "merges": tuple(merge for *_, merge in sorted(merges)),
    }


_BYTES = [*range(33, 127), *range(161, 173), *range(174, 256), *range(33), *range(127, 161), 173]
"""In the order of the characters that stand for them."""


def test_the_rule_is_the_released_one(tekken: dict[str, Any]) -> None:
    assert PRE_TOKENIZERS["tekken"].rules == (tekken["pattern"],)


@pytest.mark.parametrize("pre", ["tekken", "gpt-4o", "llama-bpe", "glm4", "smaug-bpe"])
def test_ids_are_tiktokens(pre: str, tekken: dict[str, Any]) -> None:
    """Its engine for regular expressions is another than ours."""
    (rule,) = PRE_TOKENIZERS[pre].rules
    original = tiktoken.Encoding(pre, pat_str=rule, mergeable_ranks=tekken["ranks"], special_tokens={})
    types = (TokenType.NORMAL,) * len(tekken["tokens"])
    vocabulary = Vocabulary(model="gpt2", tokens=tekken["tokens"], types=types, pre=pre, merges=tekken["merges"])
    tokenizer = Tokenizer(vocabulary, byte_level(vocabulary, CorruptModel))
    texts = lines()
    assert len(texts) >= LEAST
    for text in texts:
        assert tokenizer.encode(text) == original.encode(text, disallowed_special=()), text
