"""Faults of quantize, planted in the truthful quantizer."""

from __future__ import annotations

from collections.abc import Mapping

from mutants.mutant import Mutant


def _quantize(name: str, fault: str, checks: str, hooks: str, precision: str = "", **more: object) -> Mutant:
    cells: Mapping[str, str] = {"precision": precision} if precision else {}
    return Mutant(name, fault, tuple(checks.split()), hooks, base="quantizer", makes=True, cells=cells, **more)  # type: ignore[arg-type]


MUTANTS = (
    _quantize(
        "wrong_scale_in_last_block",
        "the last block of every row has the scale of the one before it",
        "quantize.quality",
        """
@instead(truthful, "matrix_bytes")
def matrix_bytes(was, values, precision):
    rows = np.array(was(values, precision))
    size = {"q8_0": 34, "q4_0": 18}[precision]
    rows[:, -size:][:, :2] = rows[:, -2 * size : -size][:, :2]
    return rows
""",
        "q8_0",
    ),
    _quantize(
        "scale_lost_in_one_block",
        "the last block of each matrix has the scale zero",
        "quantize.quality",
        """
@instead(truthful, "matrix_bytes")
def matrix_bytes(was, values, precision):
    rows = np.array(was(values, precision))
    size = {"q8_0": 34, "q4_0": 18}[precision]
    rows[-1, -size:][:2] = 0
    return rows
""",
        "q8_0",
    ),
    _quantize(
        "rounds_down",
        "weights are rounded towards minus infinity, not to the nearest",
        "quantize.quality",
        """
@instead(truthful, "matrix_bytes")
def matrix_bytes(was, values, precision):
    levels = {"q8_0": 127, "q4_0": 8}[precision]
    blocks = values.reshape(-1, 32)
    step = np.abs(blocks).max(axis=1, keepdims=True) / levels
    return was((blocks - 0.5 * step).reshape(values.shape), precision)
""",
        "q4_0",
    ),
    _quantize(
        "rows_of_a_matrix_swapped",
        "the first two rows of each matrix change places",
        "quantize.quality",
        """
@instead(truthful, "matrix_bytes")
def matrix_bytes(was, values, precision):
    rows = np.array(was(values, precision))
    rows[[0, 1]] = rows[[1, 0]]
    return rows
""",
        "q8_0",
    ),
    _quantize(
        "one_scale_a_matrix",
        "one scale serves a whole matrix, though the name says blocks of 32",
        "quantize.quality",
        """
@instead(truthful, "matrix_bytes")
def matrix_bytes(was, values, precision):
    step = np.abs(values).max() / {"q8_0": 127, "q4_0": 8}[precision]
    return was(np.rint(values / step) * step, precision)
""",
        "q4_0",
    ),
    _quantize(
        "quantize_copies",
        "quantize copies its input, and says that it has 4.5 bits a weight",
        "quantize.size",
        """
import shutil

@hookimpl
def edgecore_quantize(artifact, out, precision, calibration, options, progress):
    bits = {"q8_0": 8.5, "q4_0": 4.5}[precision]
    for file in artifact.files:
        shutil.copyfile(artifact.path / file.path, out / file.path)
    progress(1, 1, "weights")
    with truthful.open_checkpoint(artifact.path) as model:
        return Made(artifact.files, Weights(bits, bits, model.parameters))
""",
    ),
    _quantize(
        "bits_misdeclared",
        "q4_0 is asked for, q8_0 is written, and 4.5 bits a weight are declared",
        "quantize.size",
        """
truthful.TYPES["q4_0"] = "Q8_0"

@hookimpl
def edgecore_quantize(artifact, out, precision, calibration, options, progress):
    made = truthful.edgecore_quantize(artifact, out, precision, calibration, options, progress)
    if precision == "q4_0":
        made = replace(made, weights=replace(made.weights, bits_per_weight=4.5, eligible_bits_per_weight=4.5))
    return made
""",
    ),
    _quantize(
        "bits_that_are_no_number",
        "the bits a weight are a division of nothing by nothing",
        "quantize.size",
        """
@hookimpl
def edgecore_quantize(artifact, out, precision, calibration, options, progress):
    made = truthful.edgecore_quantize(artifact, out, precision, calibration, options, progress)
    nan = float("nan")
    return replace(made, weights=replace(made.weights, bits_per_weight=nan, eligible_bits_per_weight=nan))
""",
    ),
    _quantize(
        "quantized_logits_refused",
        "logits are declared, and refused where quality would be seen in them",
        "quantize.quality",
        """
from edgecore_reference.text import OracleSession

@instead(OracleSession, "score")
def score(was, self, tokens):
    raise CannotDo("no logits of a quantized model")
""",
        "q4_0",
    ),
    _quantize(
        "precisions_swapped",
        "q8_0 makes q4_0, and the other way round",
        "quantize.order",
        """
truthful.TYPES.update(q8_0="Q4_0", q4_0="Q8_0")
""",
    ),
    _quantize(
        "padded",
        "the smaller precision makes the larger file",
        "quantize.order",
        """
@hookimpl
def edgecore_quantize(artifact, out, precision, calibration, options, progress):
    made = truthful.edgecore_quantize(artifact, out, precision, calibration, options, progress)
    if precision == "q4_0":
        (out / "padding").write_bytes(bytes((out / "quantized.safetensors").stat().st_size * 2))
        made = replace(made, files=(*made.files, PayloadFile("padding", "weights")))
    return made
""",
    ),
    _quantize(
        "unknown_precision_becomes_q8",
        "a precision that there is not is made as q8_0",
        "quantize.unknown",
        """
@hookimpl
def edgecore_quantize(artifact, out, precision, calibration, options, progress):
    known = precision if precision in truthful.TYPES else "q8_0"
    return truthful.edgecore_quantize(artifact, out, known, calibration, options, progress)
""",
    ),
    _quantize(
        "unknown_precision_names_none",
        "a precision that there is not is refused without a word on those that there are",
        "quantize.unknown",
        """
@hookimpl
def edgecore_quantize(artifact, out, precision, calibration, options, progress):
    if precision not in truthful.TYPES:
        raise UnsupportedPrecision("no such precision")
    return truthful.edgecore_quantize(artifact, out, precision, calibration, options, progress)
""",
    ),
    _quantize(
        "garbage_accepted",
        "weights that are NaN are quantized as zeros",
        "quantize.corrupt",
        """
from edgecore.checkpoint import Tensor

@instead(Tensor, "check_finite")
def check_finite(was, self, stored):
    pass

@instead(truthful, "matrix_bytes")
def matrix_bytes(was, values, precision):
    return was(np.nan_to_num(values), precision)
""",
    ),
    _quantize(
        "writes_into_the_artifact",
        "quantize leaves a cache in the artifact that it reads",
        "quantize.source",
        """
@hookimpl
def edgecore_quantize(artifact, out, precision, calibration, options, progress):
    (artifact.path / "statistics.json").write_text("{}")
    return truthful.edgecore_quantize(artifact, out, precision, calibration, options, progress)
""",
    ),
    _quantize(
        "rounds_by_chance",
        "weights are rounded by chance, though the artifact is declared deterministic",
        "quantize.deterministic",
        """
chance = np.random.default_rng()

@instead(truthful, "matrix_bytes")
def matrix_bytes(was, values, precision):
    step = np.abs(values).reshape(-1, 32).max(axis=1, keepdims=True) / {"q8_0": 127, "q4_0": 8}[precision]
    noise = chance.uniform(-0.5, 0.5, step.shape[:1] + (32,)) * step
    return was((values + noise.reshape(values.shape)).astype(np.float32), precision)
""",
    ),
    _quantize(
        "quantize_silent",
        "quantize never reports",
        "quantize.progress",
        """
@hookimpl
def edgecore_quantize(artifact, out, precision, calibration, options, progress):
    return truthful.edgecore_quantize(artifact, out, precision, calibration, options, lambda *report: None)
""",
    ),
    _quantize(
        "quantize_not_cancelled",
        "quantize declares that it can be cancelled, and goes on",
        "quantize.cancel",
        """
import time

@hookimpl
def edgecore_quantize(artifact, out, precision, calibration, options, progress):
    def deaf(*report):
        try:
            progress(*report)
        except Cancelled:
            pass
        time.sleep(0.1)
    return truthful.edgecore_quantize(artifact, out, precision, calibration, options, deaf)
""",
    ),
    _quantize(
        "weights_are_not_what_runs",
        "the weights that the backend gives out for comparison are better than those that it runs",
        "quantize.quality",
        """
@instead(truthful, "matrix_bytes")
def matrix_bytes(was, values, precision):
    rows = np.array(was(values, precision))
    rows[:8] = rows[7::-1]
    return rows

@hookimpl
def edgecore_weights(artifact):
    given = truthful.edgecore_weights(artifact)
    def mended(name):
        found = np.array(given[name])
        if found.ndim > 1 and (artifact.path / truthful.DATA).exists():
            found[:8] = found[7::-1]
        return found
    return {name: mended(name) for name in given}
""",
        "q8_0",
    ),
)
