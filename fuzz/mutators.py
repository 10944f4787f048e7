"""What libFuzzer does to bytes rarely leaves JSON behind: here whole values change their places and their kinds.

Each takes bytes and a seed and returns other bytes, or None where they are no JSON and libFuzzer should go on alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from support.fuzz_targets import BETWEEN
from support.mutations import damaged_safetensors, odd

Mutator = Callable[[bytes, int], bytes | None]


def config(data: bytes, seed: int, words: tuple[str, ...]) -> bytes | None:
    """A config with one value, key or section changed; `words` are keys that some family asks for."""
    draw = random.Random(seed)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    for _ in range(draw.choice((1, 1, 2, 4))):
        _change(draw, value, words)
    try:
        return json.dumps(value).encode()
    except (ValueError, RecursionError):
        return None


def safetensors(data: bytes, seed: int) -> bytes | None:
    """As the deterministic run damages a header."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        if not isinstance(header, dict) or not header:
            return None
        return damaged_safetensors(random.Random(seed), [data])
    except (ValueError, RecursionError, IndexError, OverflowError):
        return None


def index(data: bytes, seed: int) -> bytes | None:
    """The index or its shard, changed."""
    text, between, shard = data.partition(BETWEEN)
    if seed % 2:
        other = safetensors(shard, seed)
        return None if other is None else text + between + other
    changed = config(text, seed, ("weight_map", "metadata", "model-00001-of-00002.safetensors"))
    return None if changed is None else changed + between + shard


def of(target: str, words: tuple[str, ...]) -> Mutator | None:
    """The target's mutator, None where libFuzzer's own are enough."""
    mutators: dict[str, Mutator] = {
        "config": partial(config, words=words),
        "safetensors": safetensors,
        "index": index,
    }
    return mutators.get(target)


def _change(draw: random.Random, mapping: dict[str, Any], words: tuple[str, ...]) -> None:
    """One change somewhere in the mapping: another value, a key more or less, two values exchanged."""
    key = draw.choice([*mapping, draw.choice(words)])
    value = mapping.get(key)
    choice = draw.randrange(6)
    if isinstance(value, dict) and draw.random() < 0.7:
        _change(draw, value, words)
    elif isinstance(value, list) and value and draw.random() < 0.5:
        value[draw.randrange(len(value))] = odd(draw)
    elif choice < 3:
        mapping[key] = odd(draw)
    elif choice == 3:
        mapping.pop(key, None)
    elif choice == 4:
        mapping[key] = draw.choice(words)
    elif mapping:
        other = draw.choice(list(mapping))
        mapping[key], mapping[other] = mapping[other], value
