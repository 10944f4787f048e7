"""Long prompts: where runtimes divide a prompt into batches, and other checks' models end."""

from __future__ import annotations

from edgecore.contract.manifest import Manifest
from edgecore_conformance.check import Cell, check
from edgecore_conformance.checks import text_ops as ops
from edgecore_conformance.checks.text_common import Inputs, subject
from edgecore_conformance.checks.text_logits import Operations
from edgecore_conformance.known import LONG, TRAINED, Known


@check
class TextLong(Operations):
    """text.long: a prompt of more than a thousand tokens is read whole.

    A random Llama with a context of 2048 tokens reads a prompt of more than a thousand at once, then one in two parts
    of more than 512 each; a token is stepped after both. The logits are held to the oracle's.

    Runtimes read long prompts in batches (512 tokens by llama.cpp's default), and windows, masks and caches that are
    right within one may be wrong beyond. A prompt that is longer than the batch is an error, or loses its beginning:
    both were seen in the wild.
    """

    def applies(self, manifest: Manifest) -> bool:
        return super().applies(manifest) and subject(manifest) == TRAINED

    def unfit(self, known: Known) -> str:
        most = known.max_context
        return f"models for {known.device}, which is emulated, hold {most} tokens in this suite" if most else ""

    def fixture(self, manifest: Manifest, cell: Cell) -> str:
        return LONG

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        draw = known.draw("text.long")
        once = known.tokens(LONG, "text.long at once", draw.randrange(1030, 1130))
        parts = known.tokens(LONG, "text.long in parts", draw.randrange(1130, 1230))
        operations: list[ops.Operation] = [
            [0, "prefill", once], *ops.stepping(0, parts[:1]), [0, "reset", 0],
            [0, "prefill", parts[:530]], [0, "prefill", parts[530:]], *ops.stepping(0, once[:1]),
        ]  # fmt: skip
        return {"operations": operations, "kept": list(range(len(operations)))}
