"""Faults of a plugin whose devices have formats, precisions and contexts of their own, planted in the truthful
emulator: what an NPU is given, and whether it was the NPU."""

from __future__ import annotations

from edgecore_conformance.outcomes import Outcome
from mutants.mutant import Mutant


def _emulated(name: str, fault: str, checks: str, hooks: str, *outcomes: Outcome, makes: bool = False) -> Mutant:
    return Mutant(
        name, fault, tuple(checks.split()), hooks, base="emulator", device="npu-emulator", makes=makes,
        outcomes=outcomes or (Outcome.FAILED,),
    )  # fmt: skip


SAYS = """
@instead(truthful.EmulatedSession, "placement")
def placement(was, self):
    return {says}
"""
LOADS_NOTHING = """
@instead(truthful, "load_emulator")
def load_emulator(was):
    return None
"""

MUTANTS = (
    _emulated(
        "format_of_the_other_device",
        "what is converted for the npu is written in the format of the processor",
        "convert.opens",
        """
@hookimpl
def edgecore_convert(source, out, format, precision, options, limits, progress):
    return truthful.edgecore_convert(source, out, "rounded", precision, options, limits, progress)
""",
        makes=True,
    ),
    _emulated(
        "precision_of_the_other_format",
        "an artifact is quantized to any precision, also to one that only the other device's format has",
        "quantize.unknown",
        """
@hookimpl
def edgecore_quantize(artifact, out, precision, calibration, options, progress):
    return truthful.quantizer.edgecore_quantize(artifact, out, precision, calibration, options, progress)
""",
    ),
    _emulated(
        "half_of_the_context_that_was_asked_for",
        "a model that is converted for so many tokens holds half of them",
        "text.context text.context_length",
        """
@hookimpl
def edgecore_convert(source, out, format, precision, options, limits, progress):
    limits = replace(limits, max_context=(limits.max_context or 512) // 2)
    return truthful.edgecore_convert(source, out, format, precision, options, limits, progress)
""",
        makes=True,
    ),
    _emulated(
        "longer_than_its_graph",
        "a longer context than the model was converted for is given, and forgets what came first",
        "text.context_length",
        """
@instead(truthful, "fixed_context")
def fixed_context(was, file):
    return 512

@instead(truthful.EmulatedSession, "context")
def context(was, self):
    held = was(self)
    kept = held.prefill
    held.prefill = lambda tokens: kept(tokens[-64:])
    return held
""",
    ),
    _emulated(
        "processor_instead_of_the_emulator",
        "the npu-emulator is asked for, the processor computes in its place, and the session says so",
        "placement.where placement.claim",
        SAYS.format(says='Placement(PlacementSource.RUNTIME_ASSIGNMENT, operators={"cpu": 1.0}, detail="no node")'),
        Outcome.FELL_BACK,
    ),
    _emulated(
        "most_of_it_on_the_processor",
        "the emulator takes some operators of the npu's, the processor most",
        "placement.where placement.claim",
        SAYS.format(
            says="Placement(PlacementSource.RUNTIME_ASSIGNMENT, "
            'operators={"npu-emulator": 0.2, "cpu": 0.8}, detail="a fifth")'
        ),
        Outcome.FELL_BACK,
    ),
    _emulated(
        "emulator_forged",
        "the session says that all is on the npu, and no emulator was ever loaded",
        "placement.where",
        LOADS_NOTHING,
        Outcome.UNPLACED,
    ),
    _emulated(
        "emulator_without_an_account",
        "the emulator is loaded, and nobody says what it took",
        "placement.where",
        SAYS.format(says="Placement(PlacementSource.NONE)"),
        Outcome.UNPLACED,
    ),
    _emulated(
        "emulator_measured_as_the_device",
        "what was measured on the emulator is told as the npu's",
        "benchmark.conditions",
        """
@instead(truthful.EmulatedSession, "conditions")
def conditions(was, self):
    return {**was(self), "device": "npu"}
""",
    ),
)
