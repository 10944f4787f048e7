"""Faults of quantizing tensor models, planted in a truthful quantizer of them."""

from __future__ import annotations

from mutants.mutant import Mutant

AGAIN = """
@hookimpl
def edgecore_quantize(artifact, out, precision, calibration, options, progress):
"""


def _tensor(name: str, fault: str, check: str, hooks: str, precision: str = "", **more: object) -> Mutant:
    cells = {"precision": precision} if precision else {}
    return Mutant(name, fault, (check,), hooks, base="tensors", makes=True, cells=cells, **more)  # type: ignore[arg-type]


MUTANTS = (
    _tensor(
        "tensor_model_copied",
        "a tensor model is copied, and said to have eight bits a weight",
        "quantize.size",
        AGAIN
        + """
    made = truthful.edgecore_quantize(artifact, out, precision, calibration, options, progress)
    (out / "model.onnx").write_bytes(artifact.model.read_bytes())
    return made
""",
    ),
    _tensor(
        "tensor_levels_in_16_bits",
        "the levels of a tensor model's weights are stored in 16 bits, and said to have eight",
        "quantize.size",
        """
@instead(truthful, "save")
def save(was, model, path):
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        if tensor.name.endswith(" levels"):
            wide = numpy_helper.to_array(tensor).astype(np.int16)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    was(model, path)
""",
    ),
    _tensor(
        "tensor_bits_of_one_layer",
        "the bits a weight of a tensor model are those of its first layer alone",
        "quantize.size",
        AGAIN
        + """
    made = truthful.edgecore_quantize(artifact, out, precision, calibration, options, progress)
    return replace(made, weights=replace(made.weights, parameters=made.weights.parameters // 10))
""",
    ),
    _tensor(
        "tensor_precision_unknown_is_w8",
        "a precision that there is not is made of a tensor model as another",
        "quantize.unknown",
        AGAIN
        + """
    known = precision if precision in truthful.PRECISIONS else "w8"
    return truthful.edgecore_quantize(artifact, out, known, calibration, options, progress)
""",
    ),
    _tensor(
        "tensor_ranges_made_up",
        "without calibration data the ranges of activations are made up",
        "quantize.calibration",
        AGAIN
        + """
    known = "w8" if calibration is None else precision
    return truthful.edgecore_quantize(artifact, out, known, calibration, options, progress)
""",
    ),
    _tensor(
        "no_feed_is_enough",
        "a folder without feeds calibrates",
        "quantize.calibration",
        """
@instead(truthful, "read_feeds")
def read_feeds(was, folder, inputs):
    return was(folder, inputs) if list(Path(folder).glob("*.npz")) else []
""",
    ),
    _tensor(
        "feeds_of_any_shape",
        "feeds of another shape calibrate, because nobody looks at it",
        "quantize.calibration",
        """
@instead(truthful, "check_feeds")
def check_feeds(was, inputs, feeds):
    if set(feeds) != {spec.name for spec in inputs}:
        was(inputs, feeds)
""",
    ),
    _tensor(
        "feeds_of_any_name",
        "feeds of another name raise whatever looking them up raises",
        "quantize.calibration",
        """
@instead(truthful, "check_feeds")
def check_feeds(was, inputs, feeds):
    was(inputs, {spec.name: feeds[spec.name] for spec in inputs})
""",
    ),
    _tensor(
        "tensor_statistics_beside_the_model",
        "statistics of the feeds are left in the tensor model that is quantized",
        "quantize.source",
        AGAIN
        + """
    (artifact.path / "statistics.json").write_text("{}")
    return truthful.edgecore_quantize(artifact, out, precision, calibration, options, progress)
""",
        "a8w8",
    ),
    _tensor(
        "tensor_levels_by_chance",
        "a tensor model's weights are rounded by chance, though it is declared deterministic",
        "quantize.deterministic",
        """
chance = np.random.default_rng()

@instead(truthful, "rounded")
def rounded(was, values):
    return was(values * (1 + chance.uniform(-1e-2, 1e-2, values.shape)).astype(values.dtype))
""",
    ),
    _tensor(
        "tensor_scale_of_the_first_row",
        "the scale of a matrix's first row serves all of them",
        "tensor.accuracy",
        """
@instead(truthful, "rounded")
def rounded(was, values):
    levels, scale = was(values)
    return levels, np.full_like(scale, scale[0])
""",
        "w8",
    ),
    _tensor(
        "tensor_range_of_too_little",
        "activations are cut off far below what the feeds show",
        "tensor.accuracy",
        """
@instead(truthful, "read_feeds")
def read_feeds(was, folder, inputs):
    return [{name: feed / 50 for name, feed in feeds.items()} for feeds in was(folder, inputs)]
""",
        "a8w8",
    ),
    _tensor(
        "tensor_option_refused",
        "an option of tensor models is declared, and refused with them",
        "manifest.options",
        AGAIN
        + """
    if "ranges" in options:
        raise BadRequest("ranges are for language models")
    return truthful.edgecore_quantize(artifact, out, precision, calibration, options, progress)
""",
        manifest=(
            (
                "[capabilities]",
                '[[options.quantize]]\nname = "ranges"\ntype = "str"\nchoices = ["mean", "largest"]\n'
                'task = "tensor"\n\n[capabilities]',
            ),
        ),
    ),
)
