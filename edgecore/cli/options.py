"""Options that mean the same at every verb are written once, here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def _all(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def _pairs(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{value!r} is not KEY=VALUE, like -O group_size=32")
        pairs[key.strip()] = text
    return pairs


def _shapes(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for value in values:
        name, equals, sizes = value.rpartition("=")
        try:
            shapes[name] = tuple(int(size) for size in sizes.split(",") if size.strip())
        except ValueError:
            equals = ""
        if not (name and equals):
            raise click.BadParameter(f"{value!r} is not INPUT=N,N,..., like --shape image=1,3,224,224")
    return shapes


def _a_number(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    # nan passes every range: it is neither below nor above.
    if value is not None and value != value:
        raise click.BadParameter("nan is not a number", ctx, parameter)
    return value


backend: Callable[[Any], Any] = click.option(
    "--backend", metavar="NAME", help="Backend, or the path of a plugin under development."
)
device: Callable[[Any], Any] = click.option("--device", metavar="NAME", help="Device of the backend (cpu, gpu, npu).")
precision: Callable[[Any], Any] = click.option(
    "--precision", metavar="NAME", help="A precision of the backend, or a class: ultra-low, low, medium, half, full."
)
profile: Callable[[Any], Any] = click.option(
    "--profile", metavar="NAME", help="Compile ahead of time for this hardware profile."
)
calibration: Callable[[Any], Any] = click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="UTF-8 text (text models) or a folder of .npz feeds (tensor models).",
)
backend_options: Callable[[Any], Any] = click.option(
    "-O", "options", multiple=True, callback=_pairs, metavar="KEY=VALUE", help="Option of the backend; repeat for more."
)
out: Callable[[Any], Any] = click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="PATH", help="Also write the result here."
)
as_json: Callable[[Any], Any] = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
deadline: Callable[[Any], Any] = click.option(
    "--timeout",
    "deadline",
    type=click.FloatRange(min=0, min_open=True, max=1e8),
    callback=_a_number,
    metavar="SECONDS",
    help="Give up after this.",
)
memory_limit: Callable[[Any], Any] = click.option(
    "--memory-limit",
    type=click.FloatRange(min=0, min_open=True, max=1e9),
    callback=_a_number,
    metavar="MB",
    help="Anonymous memory that the worker may use.",
)
offline: Callable[[Any], Any] = click.option("--offline", is_flag=True, help="Use what is cached; never the network.")

_kept: Callable[[Any], Any] = _all(
    click.option("--allow-unverified", is_flag=True, help="Keep, and use, what could not be compared."),
    click.option("--keep-refused", is_flag=True, help="Keep, and use, what is outside its quality bound, for study."),
)

making: Callable[[F], F] = _all(
    backend,
    precision,
    profile,
    calibration,
    backend_options,
    out,
    as_json,
    click.option(
        "--max-context", type=click.IntRange(min=1), metavar="TOKENS", help="Context that the result must hold."
    ),
    click.option(
        "--prefill-chunk",
        type=click.IntRange(min=1),
        metavar="TOKENS",
        help="Tokens that a prefill takes at once, where the target needs fixed shapes.",
    ),
    click.option(
        "--shape",
        "shapes",
        multiple=True,
        callback=_shapes,
        metavar="INPUT=N,N,...",
        help="Fix the shape of a tensor model's input; repeat for more.",
    ),
    _kept,
    deadline,
    memory_limit,
    offline,
)
"""What convert, quantize and build share."""

_fallback: Callable[[Any], Any] = click.option(
    "--allow-fallback",
    is_flag=True,
    help="Compute elsewhere what the device does not take, and tell the share (-O allow_fallback=true).",
)

using: Callable[[F], F] = _all(
    backend, device, _fallback, precision, profile, calibration, backend_options, _kept, deadline, offline
)  # fmt: skip
"""What every verb shares that opens a model, and builds it where it is missing."""

_count = click.IntRange(min=1)
sampling: Callable[[F], F] = _all(
    click.option(
        "-n",
        "max_tokens",
        type=click.IntRange(min=-1),
        default=-1,
        metavar="N",
        help="Tokens; -1: until the model ends.",
    ),
    click.option("-c", "--ctx-size", "context_length", type=_count, metavar="TOKENS", help="Context."),
    click.option("-t", "--threads", type=_count, metavar="N", help="Threads; default: what this process may use."),
    click.option(
        "--temp", "temperature", type=click.FloatRange(0), default=0.8, show_default=True, help="0 is greedy."
    ),
    click.option("--top-k", type=click.IntRange(0), default=40, show_default=True, help="0 keeps all."),
    click.option("--top-p", type=click.FloatRange(0, 1, True), default=0.95, show_default=True, help="1 keeps all."),
    click.option("-s", "--seed", type=int, default=-1, metavar="N", help="-1 draws one."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; repeat for more."),
)
"""Generation, in the words that llama.cpp's users know."""
