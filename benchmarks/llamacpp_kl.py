"""Does our KL divergence agree with llama.cpp's own llama-perplexity --kl-divergence?

    python benchmarks/llamacpp_kl.py [--precisions q8_0,q4_k_m,q4_0,q2_k] [--text FILE] [--build-dir DIR] [--sdist FILE]

Same files, same text, same positions: chunks of the context's length, of which the second half counts. Ours are the
logits of a session in a worker through edgecore.quality. Agreement is 2 % or 0.001. The tool keeps the reference's
log-probabilities in 16 bits, which is part of the difference.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from llamacpp_tools import arguments, entry, made, tool

from edgecore.contract import Artifact, EdgecoreError, TextSession
from edgecore.contract.options import resolve
from edgecore.machine import usable_threads
from edgecore.quality import evaluation_text
from edgecore.quality.divergence import Accumulator, Divergence, LogProbs, lockstep
from edgecore.workers import Backend, connect

RELATIVE, ABSOLUTE = 0.02, 0.001


def theirs(
    program: Path, base: Path, model: Path, text: Path, logits: Path, chunk: int, threads: int
) -> tuple[float, float]:
    """(mean KL, perplexity) as the tool prints them."""
    common = [str(program), "-c", str(chunk), "-b", str(chunk), "-t", str(threads), "--kl-divergence-base", str(logits)]
    if not logits.exists():
        subprocess.run([*common, "-m", str(base), "-f", str(text)], check=True, capture_output=True)
    done = subprocess.run(
        [*common, "-m", str(model), "--kl-divergence"], check=True, capture_output=True, text=True, errors="replace"
    )
    printed = done.stdout + done.stderr
    found = [re.search(rf"{name}\s*:\s*([-\d.]+)", printed) for name in ("Mean +KLD", r"Mean PPL\(Q\)")]
    if not all(found):
        sys.exit(f"{program.name} printed no figures:\n{printed[-2000:]}")
    return float(found[0][1]), float(found[1][1])  # type: ignore[index]


def own(reference: TextSession, candidate: TextSession, tokens: list[int], chunk: int, bos: int | None) -> Divergence:
    """The same positions: each chunk stands alone, begins with BOS where the model wants one, and its second half
    counts."""
    figures = Accumulator()
    for start in range(0, len(tokens) - chunk + 1, chunk):
        some = tokens[start : start + chunk]
        given = some if bos is None else [bos, *some[1:]]
        for at, (a, b) in lockstep((reference.score(given), candidate.score(given)), chunk):
            figures.add(LogProbs(a), LogProbs(b), some, at, chunk // 2)
    return figures.result()


def session(backend: Backend, artifact: Artifact, chunk: int, threads: int) -> TextSession:
    options = resolve(backend.entry.ready_manifest.options_of("run"), {}, "run", "llamacpp")
    opened = backend.open(artifact, device="cpu", context_length=chunk, threads=threads, options=options)
    assert isinstance(opened, TextSession)
    return opened


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--precisions", default="q8_0,q4_k_m,q4_0,q2_k")
    parser.add_argument("--text", type=Path, help="UTF-8 (default: the full evaluation text)")
    parser.add_argument("--chunk", type=int, default=256, help="tokens computed together")
    given = parser.parse_args()
    threads = given.threads or usable_threads()
    program = tool("llama-perplexity", given.build_dir, given.sdist)
    text = given.text.read_text(encoding="utf-8") if given.text else evaluation_text("full")[0]
    precisions = given.precisions.split(",")
    good = True
    with (
        connect(entry()) as first,
        connect(entry()) as second,
        made(first, given.model, precisions) as artifacts,
        tempfile.TemporaryDirectory() as name,
    ):
        file, logits = Path(name) / "text.txt", Path(name) / "base.kld"
        file.write_text(text, encoding="utf-8")
        reference = session(first, artifacts["f16"], given.chunk, threads)
        tokens = reference.tokenize(text)
        bos = tokens[0] if tokens[0] not in reference.tokenize(text, add_special=False)[:1] else None
        print(f"{given.model}, {len(tokens)} tokens in chunks of {given.chunk}, against F16")
        print(f"{'':8} {'llama-perplexity':>17} {'edgecore':>10} {'difference':>11} {'perplexity':>19}")
        for precision in precisions:
            model = artifacts[precision]
            kl, perplexity = theirs(program, artifacts["f16"].model, model.model, file, logits, given.chunk, threads)
            with session(second, model, given.chunk, threads) as candidate:
                ours = own(reference, candidate, tokens, given.chunk, bos)
            difference = abs(ours.kl_mean - kl)
            agrees = difference <= max(RELATIVE * kl, ABSOLUTE)
            good &= agrees
            print(
                f"{precision:8} {kl:17.6f} {ours.kl_mean:10.6f} {difference:11.6f}"
                f" {perplexity:9.4f} {ours.perplexity:9.4f}  {'agrees' if agrees else 'DISAGREES'}",
                flush=True,
            )
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgecoreError as error:
        sys.exit(f"error: {error}")
