"""From the command line's words to the verbs' requests: shared by every command that opens or makes a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgecore.cli.output import Bars, note
from edgecore.contract.sampling import Sampling
from edgecore.contract.sessions import TensorSession, TextSession
from edgecore.verbs.making import Making
from edgecore.verbs.opening import Runnable, text_session
from edgecore.verbs.opening import prepare as prepare_model


def making(how: Mapping[str, Any]) -> Making:
    """A `Making` from a command's parameters; those that the command does not have keep their defaults."""
    limit = how.get("memory_limit")
    return Making(
        backend=how.get("backend"),
        precision=how.get("precision"),
        format=how.get("format"),
        options={**(how.get("options") or {}), **({"allow_fallback": "true"} if how.get("allow_fallback") else {})},
        calibration=how.get("calibration"),
        max_context=how.get("max_context"),
        prefill_chunk=how.get("prefill_chunk"),
        shapes=how.get("shapes") or {},
        profile=how.get("profile"),
        allow_unverified=bool(how.get("allow_unverified")),
        keep_refused=bool(how.get("keep_refused")),
        deadline=how.get("deadline"),
        memory_limit=int(limit * 1e6) if limit else None,
        offline=bool(how.get("offline")),
    )


def prepare(model: str, how: Mapping[str, Any], bars: Bars, say: bool = True) -> Runnable:
    return prepare_model(
        model, making(how), how.get("device"), on_progress=bars, say=note if say else lambda line: None
    )


def open_text(runnable: Runnable, how: Mapping[str, Any]) -> TextSession:
    return text_session(
        runnable,
        context_length=how.get("context_length"),
        threads=how.get("threads"),
        deadline=how.get("deadline"),
    )


def tell_share(session: TextSession | TensorSession, how: Mapping[str, Any]) -> None:
    """Where the work ran, by the runtime's account, for who allowed it to run elsewhere."""
    if how.get("allow_fallback"):
        placed = session.placement
        shares = ", ".join(f"{share:.0%} on {unit}" for unit, share in (placed.time or placed.operators).items())
        note(f"{'time' if placed.time else 'operators'}: {shares or 'nobody knows where'} ({placed.source.value})")


def sampling(how: Mapping[str, Any]) -> Sampling:
    return Sampling(how["temperature"], how["top_k"], how["top_p"], how["seed"] if how["seed"] >= 0 else None)
