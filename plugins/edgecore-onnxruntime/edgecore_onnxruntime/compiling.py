"""Ahead of time: a model compiled by QNN for the NPU of a profile's chip, then loaded again and compared.

QNN's compiler is part of onnxruntime-qnn for x86-64, as is the emulator, which runs what was compiled: its answers must
be those of the model that was not, bit for bit. Graphs that share their weights in one binary are the exception: the
emulator cannot load it (onnxruntime-qnn's own tests leave it out), so weights are shared only on request.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgecore.contract import (
    Artifact,
    DeviceUnavailable,
    Made,
    PayloadFile,
    Progress,
    QualityRefused,
    UnsupportedModel,
    Value,
    full_disk,
)
from edgecore_onnxruntime import context, htp_folder, onnx_model, qnn, runtime, tensors
from edgecore_onnxruntime.chips import EMULATOR, NPU, chip
from edgecore_onnxruntime.context import Context

TENSOR, TEXT = "onnx-context", "onnx-htp-context"
SOURCES = {"onnx": TENSOR, "onnx-htp": TEXT}
"""Formats that are compiled, and what they become."""
MODEL = "model.onnx"
_OPENED = f"the same without --profile, then edgecore run MODEL --device {NPU} --allow-fallback"
GRAPHS = (htp_folder.PREFILL, htp_folder.DECODE)


def compile(
    artifact: Artifact,
    out: Path,
    profile: Mapping[str, Any],
    device: str,
    options: Mapping[str, Value],
    progress: Progress,
) -> Made:
    """Writes a folder. Raises `UnsupportedModel` for what is not compiled ahead of time or has operators that the NPU
    lacks, `DeviceUnavailable` where the compiler is not here, `QualityRefused` where what was compiled answers
    otherwise, `DoesNotFit`."""
    _check(artifact, device)
    text = artifact.task == "text"
    sources = [artifact.model.with_name(name) for name in GRAPHS] if text else [artifact.model]
    names = list(GRAPHS) if text else [MODEL]
    shared = text and bool(options.get("share_weights"))
    steps = len(names) * 2
    for number, (source, name) in enumerate(zip(sources, names, strict=True)):
        progress(number, steps, f"compiling {name}")
        with full_disk(out):
            _compile(source, out / name, options, shared, last=number == len(names) - 1)
    made = [_settled(out / name, options) for name in names]
    notes = []
    if shared:
        notes.append("the graphs share their weights: the emulator cannot load them, and nobody has seen them run")
    for number, (source, name) in enumerate(zip(sources, names, strict=True)):
        progress(len(names) + number, steps, f"comparing {name}")
        if not shared:
            _compare(source, out / name, str(options["soc_model"]))
    if not shared:
        notes.append("answers on the emulator as the model that was not compiled, bit for bit")
    files = [PayloadFile(name, "model" if number == 0 else "other") for number, name in enumerate(names)]
    binaries = {found.binary.name for found in made if found.binary}
    files += [PayloadFile(name, "weights") for name in sorted(binaries)]
    files += _copied(artifact, out) if text else []
    progress(steps, steps, "written")
    return Made(
        tuple(files),
        notes=tuple(notes),
        requires=_requires(made[0]),
        tools=qnn.versions(),
        format=SOURCES[artifact.format],
    )


def _check(artifact: Artifact, device: str) -> None:
    if artifact.format in SOURCES.values():
        raise UnsupportedModel(f"{artifact.model.name} is compiled already", supported=", ".join(SOURCES))
    if artifact.format not in SOURCES:
        raise UnsupportedModel(
            f"format {artifact.format} is for a CPU, and is not compiled ahead of time",
            supported="onnx-htp for language models, onnx for others",
            hint="edgecore build MODEL --backend onnxruntime --precision f16 --profile NAME",
        )
    if device != NPU:
        raise UnsupportedModel(f"nothing is compiled ahead of time for {device}", supported=NPU)
    if why := qnn.missing(EMULATOR):
        raise DeviceUnavailable(
            f"QNN's compiler is not here: {why}", supported="onnxruntime-qnn on x86-64", hint=qnn.INSTALL
        )
    if artifact.task == "tensor":
        tensors.check_fixed(artifact.model, onnx_model.read(artifact.model, on_npu=True).inputs, NPU)


def _compile(source: Path, to: Path, options: Mapping[str, Value], shared: bool, last: bool) -> None:
    """One graph. Those that share weights are compiled one after another, and the last one writes them all."""
    made = runtime.session_options(None, {})
    qnn.add_npu(made, EMULATOR, str(options["soc_model"]), options)
    if shared:
        made.add_session_config_entry("ep.share_ep_contexts", "1")
        made.add_session_config_entry("ep.stop_share_ep_contexts", "1" if last else "0")
    qnn.check_graph(source)
    qnn.check_playing(chip(str(options["soc_model"])))
    try:
        embed = bool(options.get("embed")) and not shared
        ort.ModelCompiler(made, source, embed_compiled_data_into_model=embed).compile_to_file(str(to))
    except runtime.ERRORS as error:
        raise qnn.explained(source, EMULATOR, options, runtime.unopened(source, error), hint=_OPENED) from None


def _settled(path: Path, options: Mapping[str, Value]) -> Context:
    """What was compiled, checked against what was asked, its digest written into the ONNX file.

    QNN takes any number for a chip or a memory; what it made of them stands in the binary.
    """
    model, found = context.sealed(path)
    if found is None or len(model.graph.node) != 1:
        raise UnsupportedModel(f"{path.name}: QNN did not compile the whole model", supported="operators that it has")
    asked = {
        "chip": chip(str(options["soc_model"])),
        "hexagon": options.get("htp_arch"),
        "vtcm_mb": options.get("vtcm_mb"),
    }
    got = {"chip": found.chip, "hexagon": found.hexagon, "vtcm_mb": found.vtcm_mb}
    if wrong := [f"{name} {got[name]} for {value}" for name, value in asked.items() if value and got[name] != value]:
        raise UnsupportedModel(f"{path.name}: QNN compiled for another chip than was asked: {', '.join(wrong)}")
    return found


def _compare(source: Path, made: Path, chip: str) -> None:
    """Raises `QualityRefused` where the two answer differently on the emulator."""
    opened = partial(qnn.open_on_npu, threads=None, device=EMULATOR, options={"soc_model": chip})
    before, after = opened(source), opened(made)
    names = [output.name for output in before.get_outputs()]
    try:
        feeds = _feeds(before, 4)
        try:
            wanted = before.run(names, feeds)
        except runtime.ERRORS:  # An index beyond what is there.
            feeds = _feeds(before, 1)
            wanted = before.run(names, feeds)
        answers = after.run(names, feeds)
    except runtime.ERRORS as error:
        raise UnsupportedModel(
            f"{made.name}: QNN compiles the model and does not compute it: {runtime.said(error)}"
        ) from None
    for name, due, got in zip(names, wanted, answers, strict=True):
        if due.tobytes() != got.tobytes():
            raise QualityRefused(
                f"{made.name}: output {name!r} differs from that of the model that was not compiled",
                supported="the model as it is, compiled where it is opened",
                hint="the same command without --profile",
            )


def _feeds(session: ort.InferenceSession, whole: int) -> dict[str, NDArray[Any]]:
    """Small numbers of either sign, `whole` whole ones from 0 where the input takes no others."""
    draw, feeds = np.random.default_rng(20261121), {}
    for spec in session.get_inputs():
        dtype = _numpy(spec.type)
        values = draw.standard_normal(spec.shape) * 0.5 if dtype.kind == "f" else draw.integers(0, whole, spec.shape)
        feeds[spec.name] = np.asarray(values > 1 if dtype.kind == "b" else values, dtype)
    return feeds


def _numpy(name: str) -> np.dtype[Any]:
    """`tensor(float16)` as numpy has it."""
    word = name.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(word, word))


def _copied(artifact: Artifact, out: Path) -> list[PayloadFile]:
    """What a session reads beside the graphs; their weights are compiled."""
    kept = [file for file in artifact.files if file.path not in (*GRAPHS, htp_folder.WEIGHTS)]
    with full_disk(out):
        for file in kept:
            shutil.copyfile(artifact.model.parent / file.path, out / file.path)
    return [PayloadFile(file.path, file.role) for file in kept]


def _requires(made: Context) -> dict[str, str]:
    """What a machine must be and have: this chip, and this version of QNN or a newer one."""
    told = {
        "device": NPU,
        "soc": made.chip,
        "hexagon": f"v{made.hexagon}",
        "vtcm_mb": str(made.vtcm_mb),
        "qnn": ".".join(map(str, made.sdk)),
    }
    versions = runtime.versions()
    return {**told, **{name: versions[name] for name in ("onnxruntime", "onnxruntime-qnn") if name in versions}}
