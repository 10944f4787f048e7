"""Tensor models that the suite makes itself, what they must answer, and how a plugin gets to open them.

The graph is small and drawn from the seed, its answer computed in float64 by plain numpy: nothing of a runtime, and
nothing of the plugin, stands between a feed and what is expected of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.contract.artifacts import Artifact, PayloadFile
from edgecore.contract.errors import UnsupportedModel, UnsupportedPrecision
from edgecore.contract.hookspecs import ConvertLimits
from edgecore.contract.manifest import Manifest
from edgecore_conformance.bench import Bench
from edgecore_conformance.known import Known

Arrays = dict[str, NDArray[Any]]
WIDE, NARROW = 24, 10
OPSET, IR = 13, 7
"""Old enough for every runtime that is alive."""
FIXED = 4
"""What open dimensions of the drawn graph become for devices that take fixed shapes only."""
CALIBRATED = 16
"""Images of the classifier that calibrate, and are not scored."""


@dataclass(frozen=True, slots=True)
class Graph:
    """`total = relu(zeta @ weight) + alpha`, `gate = sigmoid(zeta @ weight)`.

    zeta is (batch, WIDE), alpha (batch, NARROW), or with another open axis (batch, length, ...). The names are in
    another order than the alphabet's, and so are inputs and outputs of different shape."""

    weight: NDArray[np.float32]
    axes: tuple[str, ...] = ("batch",)
    names: Mapping[str, str] = field(default_factory=dict)
    """What inputs and outputs are called instead."""

    def write(self, path: Path) -> Path:
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        def value(name: str, width: int) -> Any:
            return helper.make_tensor_value_info(self.name(name), TensorProto.FLOAT, [*self.axes, width])

        nodes = [
            helper.make_node("MatMul", [self.name("zeta"), "weight"], ["product"]),
            helper.make_node("Relu", ["product"], ["positive"]),
            helper.make_node("Add", ["positive", self.name("alpha")], [self.name("total")]),
            helper.make_node("Sigmoid", ["product"], [self.name("gate")]),
        ]
        graph = helper.make_graph(
            nodes,
            "drawn",
            [value("zeta", WIDE), value("alpha", NARROW)],
            [value("total", NARROW), value("gate", NARROW)],
            [numpy_helper.from_array(self.weight, "weight")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
        onnx.save(model, str(path))
        return path

    def name(self, plain: str) -> str:
        return self.names.get(plain, plain)

    def renamed(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """Feeds as the model calls them."""
        return {self.name(name): array for name, array in arrays.items()}

    def expected(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """float64, by their plain names."""
        product = feeds["zeta"].astype(np.float64) @ self.weight.astype(np.float64)
        return {
            "total": np.maximum(product, 0) + feeds["alpha"].astype(np.float64),
            "gate": 1 / (1 + np.exp(-product)),
        }


def graph(known: Known, purpose: str) -> Graph:
    """Weights near those of a trained layer, so that quantizing them loses what it usually loses."""
    draw = np.random.default_rng(known.draw(f"graph {purpose}").getrandbits(64))
    return Graph((draw.standard_normal((WIDE, NARROW)) / np.sqrt(WIDE)).astype(np.float32))


def feeds(known: Known, purpose: str, *sizes: int) -> Arrays:
    """Of the open axes' sizes: the batch, and where there is one the length."""
    draw = np.random.default_rng(known.draw(f"feeds {purpose} {' '.join(map(str, sizes))}").getrandbits(64))
    return {
        "zeta": draw.standard_normal((*sizes, WIDE)).astype(np.float32),
        "alpha": draw.standard_normal((*sizes, NARROW)).astype(np.float32),
    }


def digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Of names, types, shapes and values: what was fed, in a line."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        sha.update(f"{name} {array.dtype} {array.shape}".encode())
        sha.update(repr(array.tolist()).encode() if array.dtype == object else np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def claimed(manifest: Manifest, field: str, device: str) -> list[str]:
    """What the tensor claims on a device say of a field, in their order."""
    return list(dict.fromkeys(getattr(c, field) for c in manifest.claims if c.task == "tensor" and c.device == device))


def precisions(manifest: Manifest, device: str) -> list[str]:
    """Claimed for tensors on the device; what is declared where nothing is claimed."""
    names = claimed(manifest, "precision", device)
    return names or [p.name for p in manifest.precisions if p.by != "quantize"][:1]


def finest(manifest: Manifest, device: str, format: str = "") -> str:
    """The one with the most bits that convert makes; of those claimed in a format, where one is named."""
    bits = {p.name: p.bits for p in manifest.precisions if p.by != "quantize"}
    made = [name for name in precisions(manifest, device) if name in bits]
    made = [name for name in made if format in ("", *manifest.formats_of("tensor", name))] or made
    return max(made, key=lambda name: bits[name])


def bits_of(manifest: Manifest, precision: str) -> float:
    for known in manifest.precisions:
        if known.name == precision:
            return known.bits
    raise UnsupportedPrecision(precision)


def opens_onnx(manifest: Manifest) -> str:
    """The format that takes ONNX files as they are, empty where there is none."""
    return next((f.name for f in manifest.formats if f.task == "tensor" and ".onnx" in f.suffixes), "")


def artifact(
    bench: Bench,
    source: Path,
    precision: str = "",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    calibration: Sequence[Mapping[str, NDArray[Any]]] = (),
) -> Artifact:
    """The ONNX file in a precision, by default the finest: converted, and quantized where that is what makes it. A
    plugin that does not convert ONNX files opens them where they lie."""
    manifest = bench.manifest
    if shapes is None:
        shapes = fixed(source) if bench.fixed_shapes else {}
    wanted = bench.precision(precision or finest(manifest, bench.device))
    if "onnx" not in manifest.sources:
        return native(bench, source)
    if wanted.by == "quantize":
        base = artifact(bench, source, finest(manifest, bench.device, bench.format_for(wanted.name, "tensor")), shapes)
        bench.stage = "quantize"
        out = bench.folder(f"tensor-{wanted.name}")
        folder = calibration_folder(bench, calibration) if wanted.calibration != "none" and calibration else None
        made = bench.backend().quantize(
            artifact=base,
            out=out,
            precision=wanted.name,
            calibration=folder,
            options=bench.options("quantize", "tensor"),
            deadline=bench.left,
        )
    else:
        bench.stage = "convert"
        out = bench.folder(f"tensor-{wanted.name}")
        made = bench.backend().convert(
            source=source,
            out=out,
            format=bench.format_for(wanted.name, "tensor"),
            precision=wanted.name,
            options=bench.options("convert", "tensor"),
            limits=ConvertLimits(shapes=dict(shapes)),
            deadline=bench.left,
        )
    bench.stage = "run"
    return bench.sealed(out, made, wanted.name, task="tensor")


def calibration_folder(bench: Bench, calibration: Iterable[Mapping[str, NDArray[Any]]]) -> Path:
    """A folder with a file of feeds for each."""
    folder = bench.folder("feeds")
    for number, arrays in enumerate(calibration):
        np.savez(folder / f"{number:03}.npz", **arrays)  # type: ignore[arg-type]
    return folder


def native(bench: Bench, path: Path) -> Artifact:
    """The file where it lies, as people have it."""
    return Artifact(
        path=path, backend=bench.entry.name, task="tensor", format=opens_onnx(bench.manifest), precision="",
        files=(PayloadFile(path.name, "model"),),
    )  # fmt: skip


def drawn_artifact(bench: Bench, purpose: str, precision: str = "", **otherwise: Any) -> Artifact:
    """The graph of a purpose, for the plugin to open; `otherwise` are fields of `Graph`."""
    drawn = replace(graph(bench.known, purpose), **otherwise)
    rows = FIXED if bench.fixed_shapes else 64
    # So many that what is fed later is hardly beyond what calibrated.
    count, sizes = 8 * 64 // rows, (rows,) * len(drawn.axes)
    calibration = [drawn.renamed(feeds(bench.known, f"calibration {i}", *sizes)) for i in range(count)]
    return artifact(bench, drawn.write(bench.folder("graph") / "model.onnx"), precision, calibration=calibration)


def refuses_open_shapes(bench: Bench) -> bool:
    """Whether the device of the run refuses a model whose dimensions are open as its author left them."""
    source = graph(bench.known, "open shapes").write(bench.folder("graph") / "model.onnx")
    try:
        with bench.session(artifact(bench, source, shapes={}), threads=1):
            return False
    except UnsupportedModel:
        return True
    finally:
        bench.stage = "run"


def fixed(source: Path) -> dict[str, tuple[int, ...]]:
    """A size for every dimension that a model leaves open: of a classifier, which is calibrated image by image, 1. None
    of a file that cannot be read."""
    import onnx

    try:
        graph = onnx.load(str(source), load_external_data=False).graph
    except Exception:  # whatever a damaged file makes a parser raise
        return {}
    size = FIXED if graph.name == "drawn" else 1
    weights = {tensor.name for tensor in graph.initializer}
    found = {}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in weights and not all(dim.HasField("dim_value") for dim in dims):
            found[value.name] = tuple(dim.dim_value if dim.HasField("dim_value") else size for dim in dims)
    return found


def classifier(bench: Bench, precision: str = "") -> tuple[Artifact, Arrays]:
    """The trained classifier for the plugin to open, and as its feeds the first eight images that are scored, one where
    it has fixed shapes."""
    source, feeds = classifier_feeds(1 if bench.fixed_shapes else 8)
    key = ("classifier", precision)
    if key not in bench.made:
        bench.made[key] = artifact(bench, source, precision, calibration=calibrating())
    return bench.made[key], feeds


def calibrating() -> list[Arrays]:
    """Feeds that calibrate the classifier, an image each."""
    source, _ = classifier_feeds(1)
    images, name = _images(), input_name(source)
    return [{name: images[i : i + 1]} for i in range(CALIBRATED)]


def classifier_feeds(count: int) -> tuple[Path, Arrays]:
    """The classifier's file and the first images that are scored."""
    from edgecore_conformance import fixtures

    source = fixtures.classifier().model
    return source, {input_name(source): _images()[CALIBRATED : CALIBRATED + count]}


def classifier_weights() -> int:
    """Numbers in the classifier's weights, counted in its file."""
    import onnx

    loaded = onnx.load(str(classifier_feeds(1)[0]))
    return sum(int(np.prod(tensor.dims)) for tensor in loaded.graph.initializer)


def _images() -> NDArray[Any]:
    from edgecore_conformance import fixtures

    return np.asarray(fixtures.classifier().images)


def input_name(model: Path) -> str:
    import onnx

    loaded = onnx.load(str(model))
    weights = {tensor.name for tensor in loaded.graph.initializer}
    return next(str(v.name) for v in loaded.graph.input if v.name not in weights)


def keep(answer: Mapping[str, NDArray[Any]], prefix: str, arrays: Arrays) -> dict[str, Any]:
    """Puts outputs into an observation's arrays; answers as facts what numpy's own file format cannot say."""
    facts: dict[str, Any] = {}
    for name, value in answer.items():
        array = np.asarray(value)
        facts[name] = {"dtype": array.dtype.name, "shape": list(array.shape)}
        if array.dtype == object:
            facts[name]["texts"] = [str(text) for text in array.ravel()]
        else:
            plain = array if array.dtype.kind in "biufc" and array.dtype.isbuiltin == 1 else np.ascontiguousarray(array)
            arrays[f"{prefix}/{name}"] = plain if plain is array else plain.reshape(-1).view(np.uint8)
    return facts


def kept(facts: Mapping[str, Any], prefix: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    """The inverse of `keep`."""
    found: Arrays = {}
    for name, about in facts.items():
        if "texts" in about:
            found[name] = np.array(about["texts"], dtype=object).reshape(about["shape"])
            continue
        array = arrays[f"{prefix}/{name}"]
        if array.dtype.name != about["dtype"]:
            import ml_dtypes

            array = array.view(np.dtype(getattr(ml_dtypes, about["dtype"])))
        found[name] = array.reshape(about["shape"])
    return found
