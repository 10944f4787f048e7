"""A text folder for an NPU in whole numbers: 16 or 8 bits of activations, 8 or 4 of weights.

htp_recipe.py  what a precision is         htp_ranges.py  what a calibration text makes of the model
htp_qdq.py     the graphs rewritten        edgecore.checkpoint.gptq  matrices rounded by how they are used
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, external_data_helper, helper

from edgecore.checkpoint import calibration as text
from edgecore.checkpoint.gptq import gptq
from edgecore.contract import (
    Artifact,
    BadRequest,
    CorruptModel,
    Fallback,
    Made,
    Progress,
    UnsupportedModel,
    Value,
    full_disk,
)
from edgecore_onnxruntime import convert_htp, htp_folder, htp_ranges
from edgecore_onnxruntime.folder import copy_beside, open_tokenizer
from edgecore_onnxruntime.htp_qdq import Encoding, Plan, Product, rewrite, scale_name, zero_name
from edgecore_onnxruntime.htp_ranges import Seen
from edgecore_onnxruntime.htp_recipe import LEAST_LEVEL, LEVEL_OF_4_BITS, Recipe, recipe
from edgecore_onnxruntime.model_file import check_file, read_tensor
from edgecore_onnxruntime.weights import measure, smoothing_name

Floats = NDArray[np.float32]
EMBEDDING = "model.embed_tokens.weight"
GRAPHS = (htp_folder.PREFILL, htp_folder.DECODE)


def quantize(
    artifact: Artifact,
    out: Path,
    precision: str,
    calibration: Path | None,
    options: Mapping[str, Value],
    progress: Progress,
) -> Made:
    """Writes the folder into `out`. Raises `UnsupportedPrecision`, `UnsupportedModel`, `CorruptModel`, `BadRequest`,
    `Cancelled`."""
    wanted = recipe(precision, options)
    source = _Source.opened(artifact.model if artifact.model.is_dir() else artifact.model.parent)
    if calibration is None:
        raise BadRequest(
            f"{precision} measures the ranges of activations, and no text was given to measure them on",
            supported="a file of UTF-8 text",
            hint="the same command with --calibration FILE.txt",
        )
    pieces = _pieces(source, text.read_text(calibration), options)
    seen = source.watched(wanted, pieces, progress)
    fallbacks = tuple(_fallbacks(source, wanted, seen))
    with full_disk(out):
        try:
            plan = _write(source, wanted, seen, out, progress)
        except BaseException:  # cancelled or failed: half a folder is worse than none
            for name in (*GRAPHS, htp_folder.WEIGHTS, htp_folder.EMBEDDING, htp_folder.DESCRIPTION):
                (out / name).unlink(missing_ok=True)
            raise
        beside = copy_beside(source.folder, out)
    return Made(
        files=(*convert_htp.payload(), *beside),
        weights=measure(out / htp_folder.PREFILL, fallbacks),
        notes=(*artifact.notes, *_notes(wanted, plan, pieces)),
    )


@dataclass(frozen=True)
class _Source:
    """The folder in float16."""

    folder: Path
    description: htp_folder.Description
    graphs: Mapping[str, ModelProto]

    @classmethod
    def opened(cls, folder: Path) -> _Source:
        description = htp_folder.read(folder)
        for name in GRAPHS:
            check_file(folder / name)
        graphs = {name: onnx.load(folder / name, load_external_data=False) for name in GRAPHS}
        if any(node.op_type in ("DequantizeLinear", "EPContext") for node in graphs[htp_folder.PREFILL].graph.node):
            raise UnsupportedModel(
                f"{folder}: it is quantized or compiled already",
                supported="quantize from f16",
                hint="edgecore convert MODEL --to onnx-htp --precision f16",
            )
        return cls(folder, description, graphs)

    @property
    def products(self) -> list[NodeProto]:
        return [node for node in self.graphs[htp_folder.PREFILL].graph.node if node.op_type == "Gemm"]

    def kept(self) -> dict[str, str]:
        """`I.key` and `I.value` to the value in prefill.onnx that it is made of."""
        made = {output: node.input[0] for node in self.graphs[htp_folder.PREFILL].graph.node for output in node.output}
        names = [f"{layer}.{kind}" for layer in range(self.description.layers) for kind in ("key", "value")]
        return {name: made[f"present.{name}"] for name in names}

    def watched(self, wanted: Recipe, pieces: Sequence[Sequence[int]], progress: Progress) -> Seen:
        taken = [node.input[0] for node in self.products]
        outputs = {value.name for value in self.graphs[htp_folder.PREFILL].graph.output}
        given = [node.output[0] for node in self.products if node.output[0] not in outputs]
        kept = list(self.kept().values()) if wanted.kv_cache == "uint8" else []
        squared = [node.input[0] for node in self.products if wanted.gptq and ".layers." in node.name]
        return htp_ranges.watch(self.folder, list(dict.fromkeys([*taken, *given, *kept])), squared, pieces, progress)

    def read(self, name: str) -> NDArray[Any]:
        tensor = next(t for t in self.graphs[htp_folder.PREFILL].graph.initializer if t.name == name)
        values = read_tensor(tensor, self.folder)
        if not np.isfinite(values).all():
            raise CorruptModel(f"{self.folder}: {name!r} holds weights that are NaN or infinite")
        return values


def _pieces(source: _Source, data: str, options: Mapping[str, Value]) -> list[list[int]]:
    """Samples that fill the context, and no more."""
    tokenizer = open_tokenizer(source.folder, source.description.vocab_size)
    count = int(options.get("calibration_samples") or text.SAMPLES)
    length = min(int(options.get("calibration_length") or text.LENGTH), source.description.context)
    return text.samples(tokenizer, data, count, length)


def _write(source: _Source, wanted: Recipe, seen: Seen, out: Path, progress: Progress) -> Plan:
    smooth = _smoothing(source, wanted, seen)
    plan = _plan(source, wanted, seen, smooth)
    with (out / htp_folder.WEIGHTS).open("xb") as stream, (out / htp_folder.EMBEDDING).open("xb") as table:
        weights, rows = _Data(stream, htp_folder.WEIGHTS), _Data(table, htp_folder.EMBEDDING)
        _embedding(source, rows)
        for done, node in enumerate(source.products):
            progress(done, len(source.products), "rounding")
            name, bits = node.input[1], _bits_of(wanted, seen, node)
            if name not in rows.tensors and bits:
                weights.add_matrix(name, *_rounded(source, wanted, seen, smooth, node), bits)
            elif name not in rows.tensors:
                weights.add(name, (source.read(name) * smooth.get(node.input[0], 1)).astype(np.float16))
        progress(len(source.products), len(source.products), "rounding")
        for tensor in source.graphs[htp_folder.PREFILL].graph.initializer:
            written = tensor.name in weights.tensors or tensor.name in rows.tensors
            if external_data_helper.uses_external_data(tensor) and not written:
                values = source.read(tensor.name).astype(np.float32)
                if tensor.name in smooth:
                    values /= smooth[tensor.name]
                    weights.add(smoothing_name(tensor.name), smooth[tensor.name])
                weights.add(tensor.name, values.astype(np.float16))
    for name, graph in source.graphs.items():
        rewrite(graph, plan)
        _declare(graph, {**weights.tensors, **rows.tensors})
        (out / name).write_bytes(graph.SerializeToString(deterministic=True))
    precision = f"a{wanted.activation_bits}w{wanted.weight_bits}"
    replace(source.description, precision=precision, embedding_type="int8").write(out)
    progress(1, 1, "writing")
    return plan


def _smoothing(source: _Source, wanted: Recipe, seen: Seen) -> dict[str, Floats]:
    """What a norm's weight is divided by, by its name, and the matrices behind it are multiplied with; by the name of
    the value between them too."""
    made: dict[str, Floats] = {}
    if not wanted.smoothing:
        return made
    norms = {node.output[0]: node for node in source.graphs[htp_folder.PREFILL].graph.node
             if node.op_type == "RMSNormalization"}  # fmt: skip
    for value, users in _users(source).items():
        if value in norms and wanted.bits_in(users[0].name) == 8:
            largest = np.maximum.reduce(
                [np.abs(source.read(node.input[1]).astype(np.float32)).max(0) for node in users]
            )
            active = np.maximum(seen.ranges[value].largest, 1e-5)
            scale = active**wanted.smoothing / np.maximum(largest, 1e-5) ** (1 - wanted.smoothing)
            scale = (scale / np.exp(np.log(scale).mean())).astype(np.float32)
            made[value] = made[norms[value].input[1]] = scale
    return made


def _bits_of(wanted: Recipe, seen: Seen, node: NodeProto) -> int:
    """Of its matrix; 0 for a product that stays in float16."""
    bits, inner = wanted.bits_of(node.name), ".layers." in node.name
    if inner and seen.ranges[node.input[0]].level < LEAST_LEVEL:
        return 0
    return 8 if inner and seen.ranges[node.output[0]].level < LEVEL_OF_4_BITS else bits


def _fallbacks(source: _Source, wanted: Recipe, seen: Seen) -> Iterator[Fallback]:
    for node in source.products:
        bits = _bits_of(wanted, seen, node)
        if bits != wanted.bits_of(node.name):
            why = "what it gives is too small beside its outliers for HTP's products of 4 bits"
            if not bits:
                why = "what enters it is too small beside its outliers for 16 bits"
            yield Fallback(node.input[1], f"int{bits}" if bits else "f16", why)


def _narrow(source: _Source, wanted: Recipe, seen: Seen, smooth: Mapping[str, Floats]) -> set[str]:
    """The products that take and give 8 bits: those that share an input do, or none of them."""
    found: set[str] = set()
    for value, users in _users(source).items():
        if wanted.bits_in(users[0].name) == 8:
            taken = seen.ranges[value].scaled(np.float32(1) / smooth[value]) if value in smooth else seen.ranges[value]
            ranges = [taken, *(seen.ranges[node.output[0]] for node in users)]
            if min(one.clearness(8) for one in ranges) >= wanted.clearness:
                found.update(node.name for node in users)
    return found


def _users(source: _Source) -> dict[str, list[NodeProto]]:
    """Values to the products that take them."""
    found: dict[str, list[NodeProto]] = {}
    for node in source.products:
        found.setdefault(node.input[0], []).append(node)
    return found


def _plan(source: _Source, wanted: Recipe, seen: Seen, smooth: Mapping[str, Floats]) -> Plan:
    def encoding(value: str, bits: int) -> Encoding:
        found = seen.ranges[value]
        ends = (found.scaled(np.float32(1) / smooth[value]) if value in smooth else found).ends
        return Encoding.over(*ends, bits, wanted.margin)

    narrow, products = _narrow(source, wanted, seen, smooth), {}
    for node in source.products:
        if not _bits_of(wanted, seen, node):
            continue
        bits = 8 if node.name in narrow else 16
        products[node.name] = Product(node.name, encoding(node.input[0], bits), encoding(node.output[0], bits))
    kept = source.kept().items() if wanted.kv_cache == "uint8" else ()
    return Plan(products, {name: encoding(value, 8) for name, value in kept})


def _rounded(
    source: _Source, wanted: Recipe, seen: Seen, smooth: Mapping[str, Floats], node: NodeProto
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """A product's matrix as levels (rows, columns) and a scale a row."""
    values = source.read(node.input[1]).astype(np.float32)
    by = smooth.get(node.input[0])
    values = values if by is None else values * by
    bits = _bits_of(wanted, seen, node)
    products = seen.products.get(node.input[0])
    if products is None:
        return _nearest(values, bits)
    used = products / np.float32(seen.positions)
    used = used if by is None else used / by / by[:, None]
    made = gptq(values, used, values.shape[1], True, bits, positive=True)
    return (made.levels.astype(np.int16) - (1 << bits - 1)).astype(np.int8), made.scale[:, 0]


def _nearest(values: Floats, bits: int) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    most = (1 << bits - 1) - 1
    scale = np.maximum(np.abs(values).max(1) / most, 1e-7).astype(np.float16)
    levels = np.rint(values / scale[:, None].astype(np.float32))
    return np.clip(levels, -most - 1, most).astype(np.int8), scale


def _embedding(source: _Source, to: _Data) -> None:
    """The table in 8 bits, a scale a row: first in its file, since sessions read it as well."""
    table = source.description.embedding(source.folder)
    starts = range(0, source.description.vocab_size, 4096)
    levels, scales = zip(*(_nearest(np.asarray(table[at : at + 4096], np.float32), 8) for at in starts), strict=True)
    to.add_matrix(EMBEDDING, np.concatenate(levels), np.concatenate(scales), 8)


@dataclass
class _Data:
    """A file of tensors while it is written."""

    stream: Any
    location: str
    tensors: dict[str, TensorProto] = field(default_factory=dict)

    def add_matrix(self, name: str, levels: NDArray[np.int8], scale: NDArray[np.float16], bits: int) -> None:
        self._add_levels(name, levels, bits)
        self.add(scale_name(name), scale)
        self._add_levels(zero_name(name), np.zeros(len(scale), np.int8), bits)

    def _add_levels(self, name: str, levels: NDArray[np.int8], bits: int) -> None:
        if bits == 8:
            self.add(name, levels)
            return
        even = np.append(levels.ravel(), np.zeros(levels.size % 2, np.int8)).view(np.uint8) & 15
        self._write(name, TensorProto.INT4, levels.shape, even[::2] | even[1::2] << 4)

    def add(self, name: str, values: NDArray[Any]) -> None:
        self._write(name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape, values)

    def _write(self, name: str, type: int, shape: Sequence[int], values: NDArray[Any]) -> None:
        self.stream.write(bytes(-self.stream.tell() % htp_folder.ALIGNED))
        tensor = TensorProto(name=name, data_type=type, dims=shape, raw_data=b"")
        external_data_helper.set_external_data(tensor, self.location, self.stream.tell(), values.nbytes)
        tensor.ClearField("raw_data")
        self.tensors[name] = tensor
        self.stream.write(np.ascontiguousarray(values).data)


def _declare(graph: ModelProto, tensors: Mapping[str, TensorProto]) -> None:
    """The initializers that the nodes take: from the new files, else small ones that were in the graph. And the
    smoothing, which no node takes: weights.py does."""
    inline = {t.name: t for t in graph.graph.initializer if not external_data_helper.uses_external_data(t)}
    wanted = dict.fromkeys(value for node in graph.graph.node for value in node.input)
    wanted |= {smoothing_name(name): None for name in wanted if smoothing_name(name) in tensors}
    del graph.graph.initializer[:]
    graph.graph.initializer.extend({**tensors, **inline}[name] for name in wanted if name in tensors or name in inline)


def _notes(wanted: Recipe, plan: Plan, pieces: Sequence[Sequence[int]]) -> Iterator[str]:
    yield f"ranges of activations from {len(pieces)} samples of {len(pieces[0])} tokens"
    if wanted.gptq:
        yield "matrices rounded by how these samples use them (GPTQ)"
    if wanted.activation_bits == 8:
        narrow = sum(product.taken.bits == 8 for product in plan.products.values())
        yield f"{narrow} of {len(plan.products)} products take and give 8 bits, the others 16"
    yield "between the products float16: residual stream, norms, rotary embedding, attention"
