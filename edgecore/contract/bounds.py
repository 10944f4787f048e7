"""What every text backend checks before it computes, in the same words: ids, the room in a context, its length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.contract.errors import BadRequest, DoesNotFit

DEFAULT_CONTEXT = 4096
"""Tokens when nobody said: what was trained for may be 131072, and its KV cache larger than the machine."""
SCORED_BYTES = 1 << 25
"""Logits held at once when a text is scored."""


def chosen_context(trained: int, asked: int | None) -> int:
    """Tokens that a session is to hold.

    trained: what the model was trained for, 0 where nobody knows.
    Raises `BadRequest`, and `DoesNotFit` for more than that.
    """
    if asked is not None and asked < 1:
        raise BadRequest(f"a context of {asked} tokens", supported="at least 1")
    if asked is not None and trained and asked > trained:
        raise DoesNotFit(
            f"a context of {asked} tokens; the model was trained for {trained}",
            supported=f"up to {trained} tokens",
            hint=f"-c {trained}",
        )
    return asked or min(trained or DEFAULT_CONTEXT, DEFAULT_CONTEXT)


def checked_ids(tokens: Sequence[int] | NDArray[Any], vocab_size: int) -> NDArray[np.int64]:
    """A row of token ids. Raises `BadRequest` for what is none, and for ids outside the vocabulary."""
    ids = np.asarray(tokens)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise BadRequest("tokens that are no row of token ids", supported="a sequence of whole numbers")
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        bad = next(int(i) for i in ids if not 0 <= i < vocab_size)
        raise BadRequest(f"token id {bad}", supported=f"ids from 0 to {vocab_size - 1}")
    return ids.astype(np.int64, copy=False)


def check_append(count: int, position: int, length: int) -> None:
    """Raises `DoesNotFit` where `count` tokens after `position` are more than the context's `length`."""
    if (total := position + count) > length:
        raise DoesNotFit(
            f"{count} tokens after {position}; the context holds {length}",
            supported=f"up to {length - position} more",
            hint=f"-c {total} for a longer context, if the model was trained for it",
        )


def check_prefill(tokens: Sequence[int]) -> None:
    """Raises `BadRequest` for none."""
    if not len(tokens):
        raise BadRequest("no tokens to prefill", supported="at least one")


def check_rewind(n: int, position: int) -> None:
    """Raises `BadRequest` for more tokens than there are."""
    if not 0 <= n <= position:
        raise BadRequest(f"rewind by {n} of {position} tokens", supported=f"0 to {position}")


def check_score(count: int, length: int) -> None:
    """Raises `DoesNotFit` for a text longer than the context."""
    if count > length:
        raise DoesNotFit(f"a text of {count} tokens", supported=f"the context's {length}", hint=f"-c {count}")
