"""Faults of placement: it ran elsewhere, or nobody knows where."""

from __future__ import annotations

from edgecore_conformance.outcomes import Outcome
from mutants.mutant import Mutant

GPU = (
    ('help = "numpy, through the BLAS that it was built with"', '[[devices]]\nname = "gpu"'),
    ('devices = ["cpu"]', 'devices = ["cpu", "gpu"]'),
)
"""Manifest lines that declare an accelerator which there is not."""
PROBE = """
@hookimpl
def edgecore_probe():
    found = truthful.edgecore_probe()
    return replace(found, devices=(*found.devices, ProbedDevice("gpu", True, "a graphics processor")))
"""
SAYS = """
from edgecore_reference import tensors
from edgecore_reference.text import OracleSession

@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    session = truthful.edgecore_run(artifact, "cpu", context_length, threads, options)
    session.asked = device
    return session

for kind in (OracleSession, tensors.OnnxSession):
    @instead(kind, "placement")
    def placement(was, self):
        return {says}
"""


def _says(what: str) -> str:
    return SAYS.replace("{says}", what)


def _placed(name: str, fault: str, says: str, outcomes: tuple[Outcome, ...], gpu: bool = True) -> Mutant:
    hooks = (PROBE if gpu else "") + _says(says)
    check = "placement.where" if gpu else "placement.claim"
    return Mutant(name, fault, (check,), hooks, GPU if gpu else (), outcomes=outcomes, device="gpu" if gpu else "cpu")


NOT_PLACED = (Outcome.FAILED, Outcome.FELL_BACK, Outcome.UNPLACED)

MUTANTS = (
    _placed(
        "processor_instead_of_the_accelerator",
        "the gpu is asked for, the processor computes, and says so",
        'Placement(PlacementSource.RUNTIME_ASSIGNMENT, operators={"cpu": 1.0})',
        (Outcome.FELL_BACK,),
    ),
    _placed(
        "accelerator_forged",
        "the gpu is asked for, the processor computes, and the runtime's profile says gpu",
        'Placement(PlacementSource.RUNTIME_PROFILE, time={"gpu": 1.0}, detail="100 % on gpu")',
        (Outcome.FAILED, Outcome.FELL_BACK),
    ),
    _placed(
        "accelerator_without_evidence",
        "the gpu is asked for, and nobody says where it ran",
        "Placement()",
        (Outcome.UNPLACED, Outcome.FELL_BACK),
    ),
    _placed(
        "outside_claimed_from_inside",
        "the plugin itself writes what only an observer outside could",
        'Placement(PlacementSource.OUTSIDE, time={"gpu": 1.0}, detail="counters: gpu")',
        (Outcome.FAILED, Outcome.FELL_BACK),
    ),
    _placed(
        "elsewhere_on_the_processor",
        "cpu is asked for, and the placement names an npu",
        'Placement(PlacementSource.RUNTIME_PROFILE, time={"npu": 1.0}, detail="npu: 100 %")',
        NOT_PLACED,
        gpu=False,
    ),
    _placed(
        "shares_do_not_sum",
        "shares of the work sum to 60 %",
        'Placement(PlacementSource.RUNTIME_PROFILE, time={"cpu": 0.6}, detail="cpu: 60 %")',
        NOT_PLACED,
        gpu=False,
    ),
    Mutant(
        "any_device_accepted",
        "a device that there is not is taken for the processor",
        ("placement.unknown_device",),
        """
@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    return truthful.edgecore_run(artifact, "cpu", context_length, threads, options)
""",
    ),
    Mutant(
        "unknown_device_is_a_fault",
        "a device that there is not raises whatever happens to be raised",
        ("placement.unknown_device",),
        """
@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    return truthful.edgecore_run(artifact, {"cpu": "cpu"}[device], context_length, threads, options)
""",
    ),
    Mutant(
        "threads_ignored",
        "as many threads compute as there are processors, whatever was asked",
        ("placement.threads",),
        """
from edgecore_reference import text

@instead(text, "limit_threads")
def limit_threads(was, threads):
    was(2)
    return str(threads)
""",
    ),
)
