"""A small truthful plugin that quantizes tensor models: weights to the nearest of 255 levels a row (w8), and with the
ranges that calibration feeds show the inputs too (a8w8), as ONNX's own operators say it, evaluated by the reference.
"""

from pathlib import Path

import numpy as np

from edgecore.contract import BadRequest, Made, PayloadFile, UnsupportedPrecision, Weights, check_feeds, hookimpl
from edgecore_reference.hooks import edgecore_convert, edgecore_probe, edgecore_run

__all__ = ["edgecore_convert", "edgecore_probe", "edgecore_quantize", "edgecore_run", "read_feeds", "rounded", "save"]
PRECISIONS = ("w8", "a8w8")


@hookimpl
def edgecore_quantize(artifact, out, precision, calibration, options, progress):
    if precision not in PRECISIONS:
        raise UnsupportedPrecision(f"quantize does not make {precision!r}", supported=", ".join(PRECISIONS))
    if precision == "a8w8" and calibration is None:
        raise UnsupportedPrecision("a8w8 needs calibration data", supported="w8")
    import onnx  # no import of the hooks may
    from onnx import TensorProto, helper, numpy_helper

    from edgecore_reference.tensors import OnnxSession

    feeds = read_feeds(calibration, OnnxSession(artifact.model).inputs) if precision == "a8w8" else []
    progress(0, 1, "weights")
    model = onnx.load(str(artifact.model))
    for opset in model.opset_import:
        opset.version = max(opset.version, 19)  # the first whose operators the evaluator has
    model.ir_version = max(model.ir_version, 9)
    kept, nodes, stored, eligible, bytes_eligible = [], [], 0, 0, 0
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim < 2:
            kept.append(tensor)
            stored += values.nbytes
            continue
        levels, scale = rounded(values)
        name = tensor.name
        kept += [numpy_helper.from_array(levels, f"{name} levels"), numpy_helper.from_array(scale, f"{name} scale")]
        nodes.append(helper.make_node("DequantizeLinear", [f"{name} levels", f"{name} scale"], [name], axis=0))
        eligible += values.size
        bytes_eligible += levels.nbytes + scale.nbytes
    for place, name in enumerate(sorted(feeds[0]) if feeds else []):
        largest = np.float32(max(float(np.abs(feed[name]).max()) for feed in feeds) / 127 or 1.0)
        kept += [numpy_helper.from_array(largest, f"range {place}")]
        nodes += [
            helper.make_node("QuantizeLinear", [name, f"range {place}", "zero"], [f"levels {place}"]),
            helper.make_node("DequantizeLinear", [f"levels {place}", f"range {place}", "zero"], [f"input {place}"]),
        ]
        for node in model.graph.node:
            node.input[:] = [f"input {place}" if other == name else other for other in node.input]
    kept.append(helper.make_tensor("zero", TensorProto.INT8, [], [0]))
    ordered = [*nodes, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(ordered)
    parameters = eligible + stored // 4
    weights = Weights(8 * (stored + bytes_eligible) / parameters, 8 * bytes_eligible / eligible, parameters)
    save(model, out / "model.onnx")
    progress(1, 1, "weights")
    return Made((PayloadFile("model.onnx", "model"),), weights)


def rounded(values):
    """int8 of the same shape, and a scale for each of the first axis."""
    scale = np.abs(values).reshape(len(values), -1).max(axis=1) / 127
    scale[scale == 0] = 1
    shape = (-1, *[1] * (values.ndim - 1))
    return np.rint(values / scale.reshape(shape)).astype(np.int8), scale.astype(np.float32)


def read_feeds(folder, inputs):
    files = sorted(Path(folder).glob("*.npz"))
    if not files:
        raise BadRequest(f"{folder}: no .npz files", supported="a folder of .npz files")
    found = []
    for file in files:
        with np.load(file) as archive:
            found.append(dict(archive))
        check_feeds(inputs, found[-1])
    return found


def save(model, path):
    path.write_bytes(model.SerializeToString(deterministic=True))
