"""Whether an artifact still has the model's words: its tokenizer, the tokens that end a text, its chat template. Logits
do not show that one is missing, and nobody looks once the weights are right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgecore.checkpoint.tokenizer import Tokenizer
from edgecore.contract.artifacts import Artifact
from edgecore.contract.errors import EdgecoreError
from edgecore.contract.sessions import TextSession
from edgecore_conformance.bench import Bench
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, error_of

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who is there? </s> \u4e2d"}]


def lines(known: Known) -> list[str]:
    """One of the seed's, and one with special tokens and without."""
    return [known.text("words", 160), " <s>caf\u00e9</s>\n<|im_end|>"]


def observe_words(bench: Bench, artifact: Artifact) -> dict[str, Any]:
    """What an open session of the artifact makes of them."""
    with bench.session(artifact, threads=1) as session:
        assert isinstance(session, TextSession)
        ids = [session.tokenize(line, True, parse) for line in lines(bench.known) for parse in (False, True)]
        try:
            chat: Any = session.encode_chat(CHAT)
        except EdgecoreError as error:
            chat = error_of(error)["error"]
        return {"ids": ids, "text": session.detokenize(ids[0]), "ends": sorted(session.eos_ids), "chat": chat}


def judge_words(seen: Mapping[str, Any], tokenizer: Tokenizer, known: Known, verdict: Judgement) -> None:
    """They are the neutral tokenizer's."""
    ids = [tokenizer.encode(line, parse_special=parse) for line in lines(known) for parse in (False, True)]
    try:
        chat: Any = tokenizer.encode_chat(CHAT)
    except EdgecoreError as error:
        chat = error_of(error)["error"]
    due = {"ids": ids, "text": tokenizer.decode(ids[0]), "ends": sorted(tokenizer.eos_ids), "chat": chat}
    for name, what in (
        ("ids", "ids of text"), ("text", "text of ids"), ("ends", "tokens that end a text"), ("chat", "chat"),
    ):  # fmt: skip
        same = seen[name] == due[name]
        verdict.expect(same, f"{what}: {str(seen[name])[:160]}, where the model's are {str(due[name])[:160]}")
