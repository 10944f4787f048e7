"""What a caller may ask of an object that lives in a worker: a table, so that nothing else of it can be reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from edgecore.contract.errors import PluginFault
from edgecore.contract.sessions import TensorSession, TextSession

_TEXT: dict[str, Callable[..., Any]] = {
    "placement": lambda s: s.placement,
    "conditions": lambda s: s.conditions,
    "tokenize": lambda s, *a: s.tokenize(*a),
    "token_bytes": lambda s, token: s.token_bytes(token),
    "detokenize": lambda s, tokens: s.detokenize(tokens),
    "apply_chat": lambda s, messages: s.apply_chat(messages),
    "encode_chat": lambda s, messages: s.encode_chat(messages),
    "score": lambda s, tokens: s.score(tokens),
    "generate": lambda s, tokens, **k: s.generate(tokens, **k),
    "close": lambda s: s.close(),
    "context.tokens": lambda s: list(s.context().tokens),
    "context.position": lambda s: s.context().position,
    "context.prefill": lambda s, tokens: s.context().prefill(tokens),
    "context.step": lambda s, token: s.context().step(token),
    "context.rewind": lambda s, n: s.context().rewind(n),
    "context.reset": lambda s: s.context().reset(),
}
_TENSOR: dict[str, Callable[..., Any]] = {
    "placement": lambda s: s.placement,
    "call": lambda s, feeds: s(feeds),
    "close": lambda s: s.close(),
}
_MAPPING: dict[str, Callable[..., Any]] = {
    "get": lambda m, name: m[name],
    "close": lambda m: getattr(m, "close", lambda: None)(),
}


def describe(answer: Any) -> dict[str, Any] | None:
    """What never changes about an object that stays in the worker; None for an answer that travels itself."""
    if isinstance(answer, TextSession):
        return {
            "kind": "text",
            "context_length": answer.context_length,
            "vocab_size": answer.vocab_size,
            "eos_ids": frozenset(answer.eos_ids),
        }
    if isinstance(answer, TensorSession):
        return {"kind": "tensor", "inputs": answer.inputs, "outputs": answer.outputs}
    if isinstance(answer, Mapping):
        return {"kind": "mapping", "names": list(answer)}
    return None


def method_of(thing: Any, name: str) -> Callable[..., Any]:
    """The call `name` on `thing`. Raises `PluginFault` for one that is not in the tables."""
    table = _TEXT if isinstance(thing, TextSession) else _TENSOR if isinstance(thing, TensorSession) else _MAPPING
    if name not in table:
        raise PluginFault(f"a worker has no call {name!r} for a {type(thing).__name__}")
    return partial(table[name], thing)
