"""An ONNX graph made lean by ONNX Runtime's own optimizer, and still the source's: its names, its inputs and outputs in
their order, operators that any runtime has.

Only what does not depend on a target (`ORT_ENABLE_BASIC`): constants folded, what does nothing removed, normalizations
and activations written out put together again, a batch norm folded into its convolution. What is left is fused where
the model is opened.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import ModelProto

from edgecore.contract import EdgecoreError, check_room
from edgecore_onnxruntime import onnx_model, runtime, unfit

LARGE = 1 << 30
"""Bytes of weights above which they go to a file of their own: a protobuf message ends at 2 GiB."""
WEIGHTS_SUFFIX = ".data"
_CASTS = "InsertedPrecisionFreeCast"
"""How ONNX Runtime calls what it adds where its CPU kernels lack 16 bits; elsewhere they would only be in the way."""


def cleaned(path: Path, work: Path) -> ModelProto:
    """The model of a file; `work` is an empty folder. Raises as `onnx_model.open_session`, `DoesNotFit`
    for a full disk."""
    source = onnx_model.load(path)
    options = runtime.session_options(1, {"graph_optimization": "basic"})
    options.optimized_model_filepath = str(work / "optimized.onnx")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
    try:
        onnx_model.open_session(path, options)
    except EdgecoreError:
        check_room(work / "room")
        raise
    model = onnx.load(work / "optimized.onnx")
    if not model.graph.node or any(node.name.startswith(_CASTS) for node in model.graph.node):
        model = source
    return restored(model, source)


def restored(model: ModelProto, source: ModelProto) -> ModelProto:
    """`model` with the source's inputs, outputs and words, and a name for each operator, by which options call it;
    weights that the source lists as inputs are none. Products that QNN takes otherwise are turned round."""
    made = ModelProto()
    made.CopyFrom(model)
    weights = {tensor.name for tensor in source.graph.initializer}
    inputs, outputs = [v for v in source.graph.input if v.name not in weights], list(source.graph.output)
    for field, values in ((made.graph.input, inputs), (made.graph.output, outputs)):
        del field[:]
        field.extend(values)
    unfit.mend(made)
    taken = {node.name for node in made.graph.node}
    for number, node in enumerate(made.graph.node):
        if not node.name:
            name = f"{node.op_type}_{number}"
            node.name = name if name not in taken else f"{name}_edgecore"
    used = {node.domain for node in _nodes(made.graph)} | {"", *(f.domain for f in made.functions)}
    opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}
    del made.opset_import[:], made.metadata_props[:], made.graph.value_info[:]
    names = {"" if name == "ai.onnx" else name for name in used}
    made.opset_import.extend(onnx.helper.make_opsetid(name, opsets[name]) for name in sorted(names) if name in opsets)
    made.metadata_props.extend(source.metadata_props)
    made.ir_version = max(made.ir_version, 4)  # before, weights had to be inputs
    made.graph.name = source.graph.name
    made.producer_name, made.producer_version = source.producer_name, source.producer_version
    return made


def write(model: ModelProto, path: Path) -> bool:
    """Whether the weights went to a file of their own, beside, under the same name with `WEIGHTS_SUFFIX`."""
    large = bool(model.ByteSize() > LARGE)
    onnx.save(model, path, save_as_external_data=large, location=path.name + WEIGHTS_SUFFIX, size_threshold=1024)
    return large


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Those of graphs inside it, too."""
    found = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                found += _nodes(inner) if inner.node else []
    return found
