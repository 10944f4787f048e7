"""Special tokens that stand in what users say stay text in a conversation too, though the template's own are special.

As transformers' `sanitize_control_tokens` does it: such words are put between two marks before the template sees them,
and what stands between marks is encoded as text afterwards. Marks in the text itself are dropped, so nobody can forge
one; a template that cuts a marked word apart leaves single marks, which go too, and the text around them never joins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

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
