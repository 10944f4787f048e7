"""Special tokens that stand in what users say stay text in a conversation too, though the template's own are special.

As transformers' `sanitize_control_tokens` does it: such words are put between two marks before the template sees them,
and what stands between marks is encoded as text afterwards. Marks in the text itself are dropped, so nobody can forge
one; a template that cuts a marked word apart leaves single marks, which go too, and the text around them never joins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgecore.contract.errors import BadRequest

if TYPE_CHECKING:
    from edgecore.contract.sessions import TextSession

START, END = "\U000f5ed0", "\U000f5ed1"
"""Private characters, which stand for nothing anywhere."""
_MARKS = re.compile(f"{START}([^{START}{END}]*){END}|[{START}{END}]")


def marked(value: Any, words: re.Pattern[str]) -> Any:
    """`value`, a message or a part of one, with each of `words` between marks."""
    if isinstance(value, str):
        return words.sub(f"{START}\\g<0>{END}", value.replace(START, "").replace(END, ""))
    if isinstance(value, Mapping):
        return {key: marked(item, words) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [marked(item, words) for item in value]
    return value


def pieces(text: str) -> list[tuple[str, bool]]:
    """The text without its marks, in pieces; True for what stood between two of them."""
    found = _MARKS.split(text)
    return [(piece, n % 2 == 1) for n, piece in enumerate(found) if piece]


def pattern(words: Sequence[str]) -> re.Pattern[str]:
    """Matches any of the words, the longest where there are several."""
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or "(?!)")


def encode_chat(session: TextSession, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """`TextSession.encode_chat` from what every session has: a message that is tokenized otherwise when special tokens
    are looked for spells one, and is put between marks as a whole."""

    def guarded(value: Any) -> Any:
        if not isinstance(value, str) or session.tokenize(value, False, False) == session.tokenize(value, False, True):
            return value
        return f"{START}{value.replace(START, '').replace(END, '')}{END}"

    given = [{key: guarded(value) for key, value in message.items()} for message in messages]
    text = session.apply_chat(given)
    if given == list(map(dict, messages)):
        return session.tokenize(text, False, True)
    if re.search(f"[{START}{END}]", _MARKS.sub(lambda found: "" if found.group(1) is not None else START, text)):
        raise BadRequest(
            "a message spells special tokens, and the chat template takes it apart", supported="messages without them"
        )
    found: list[int] = []
    line = session.tokenize("\n", False, False)
    for piece, plain in pieces(text):
        ids = session.tokenize(piece, False, not plain)
        # Where a tokenizer puts a space before every text, it must not before a piece: behind a newline it does not.
        whole = session.tokenize("\n" + piece, False, not plain)
        found += whole[len(line) :] if found and whole[: len(line)] == line else ids
    return found
