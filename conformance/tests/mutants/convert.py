"""Faults of convert: the artifact is wrong, or something else than the artifact was touched."""

from __future__ import annotations

from mutants.mutant import Mutant

HEAD = "from edgecore_reference import folder\n"


def _convert(name: str, fault: str, checks: str, hooks: str) -> Mutant:
    return Mutant(name, fault, tuple(checks.split()), HEAD + hooks, makes=True)


MUTANTS = (
    _convert(
        "writes_into_its_source",
        "convert keeps a cache beside the source's weights",
        "convert.source",
        """
@instead(folder, "convert")
def convert(was, model, out, *rest):
    (model.path / ".cache.json").write_text("{}") if model.path.is_dir() else None
    return was(model, out, *rest)
""",
    ),
    _convert(
        "touches_its_source",
        "convert rewrites a file of the source, byte for byte, only newer",
        "convert.source",
        """
@instead(folder, "convert")
def convert(was, model, out, *rest):
    file = model.path / "config.json"
    if file.is_file():
        text = file.read_text()
        file.write_text(text)
    return was(model, out, *rest)
""",
    ),
    _convert(
        "not_deterministic",
        "the artifact holds the time at which it was made",
        "convert.deterministic",
        """
import json, time

@instead(folder, "convert")
def convert(was, model, out, *rest):
    made = was(model, out, *rest)
    file = out / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "made": time.time_ns()}))
    return made
""",
    ),
    _convert(
        "leaves_a_part_beside",
        "convert writes beside its folder first, and leaves that there when it is cancelled or fails",
        "convert.cancel",
        """
import shutil

@instead(folder, "convert")
def convert(was, model, out, *rest):
    part = out.with_name(out.name + ".part")
    part.mkdir()
    made = was(model, part, *rest)
    for file in part.iterdir():
        shutil.move(file, out / file.name)
    part.rmdir()
    return made
""",
    ),
    _convert(
        "lock_survives_a_kill",
        "convert locks by a file beside its folder, and a killed one never unlocks",
        "convert.killed",
        """
import time

@instead(folder, "convert")
def convert(was, model, out, *rest):
    lock = out.parent / ".converting"
    lock.touch()
    try:
        return was(model, out, *rest)
    finally:
        time.sleep(0.5)  # what is small is finished before the signal comes, on a machine that has much to do
        lock.unlink(missing_ok=True)
""",
    ),
    _convert(
        "temporary_files_survive_a_kill",
        "convert keeps a copy in the system's folder for temporary files, and a killed one leaves it there",
        "convert.killed",
        """
import shutil, tempfile, time

@instead(folder, "convert")
def convert(was, model, out, *rest):
    copy = Path(tempfile.mkdtemp(prefix="converting-"))
    (copy / "weights").write_bytes(bytes(1 << 20))
    try:
        return was(model, out, *rest)
    finally:
        time.sleep(0.5)  # as above
        shutil.rmtree(copy)
""",
    ),
    _convert(
        "cancel_ignored",
        "convert goes on to the end after it was cancelled",
        "convert.cancel",
        """
import time

@instead(folder, "convert")
def convert(was, model, out, precision, vectors, limits, progress):
    def deaf(done, total, stage=""):
        try:
            progress(done, total, stage)
        except Cancelled:
            pass
        time.sleep(0.05)
    return was(model, out, precision, vectors, limits, deaf)
""",
    ),
    _convert(
        "progress_goes_back",
        "progress falls in the middle of a stage",
        "convert.progress",
        """
import time

@instead(folder, "convert")
def convert(was, model, out, precision, vectors, limits, progress):
    most = [0]
    def jumping(done, total, stage=""):
        progress(done, total, stage)
        most[0] = max(most[0], done)
        if 0 < done < total:
            time.sleep(0.06)
            progress(done // 2, total, stage)
            time.sleep(0.06)
    return was(model, out, precision, vectors, limits, jumping)
""",
    ),
    _convert(
        "progress_over_the_whole",
        "progress ends above its total",
        "convert.progress",
        """
@instead(folder, "convert")
def convert(was, model, out, precision, vectors, limits, progress):
    return was(model, out, precision, vectors, limits, lambda done, total, stage="": progress(2 * done, total, stage))
""",
    ),
    _convert(
        "progress_silent",
        "convert never reports",
        "convert.progress",
        """
@instead(folder, "convert")
def convert(was, model, out, precision, vectors, limits, progress):
    return was(model, out, precision, vectors, limits, lambda *report: None)
""",
    ),
    _convert(
        "full_disk_swallowed",
        "what could not be written is left out, and the call ends well",
        "convert.disk_full",
        """
import os
from edgecore.checkpoint import folder_out

@instead(folder_out, "write_safetensors")
def write_safetensors(was, path, entries, progress):
    try:
        was(path, entries, progress)
    except OSError:
        pass
""",
    ),
    _convert(
        "not_a_number_accepted",
        "weights that are NaN are copied",
        "convert.corrupt",
        """
from edgecore.checkpoint import Tensor, tensors

@instead(Tensor, "check_finite")
def check_finite(was, self, stored):
    pass
""",
    ),
    _convert(
        "corrupt_is_a_fault",
        "a corrupt source raises whatever happens to be raised",
        "convert.corrupt",
        """
@hookimpl
def edgecore_convert(source, out, format, precision, options, limits, progress):
    try:
        return truthful.edgecore_convert(source, out, format, precision, options, limits, progress)
    except CorruptModel as error:
        raise ValueError(error.what)
""",
    ),
    _convert(
        "truncated_accepted",
        "weights that a truncated file lacks become zeros",
        "convert.corrupt",
        """
import os, shutil, tempfile

@hookimpl
def edgecore_convert(source, out, format, precision, options, limits, progress):
    try:
        return truthful.edgecore_convert(source, out, format, precision, options, limits, progress)
    except CorruptModel:
        with tempfile.TemporaryDirectory() as whole:
            copy = Path(whole) / "copy"
            shutil.copytree(source, copy)
            with (copy / "model.safetensors").open("ab") as file:
                length = int.from_bytes((copy / "model.safetensors").open("rb").read(8), "little")
                import json
                header = json.loads((copy / "model.safetensors").open("rb").read(8 + length)[8:])
                end = max(t["data_offsets"][1] for n, t in header.items() if n != "__metadata__")
                file.truncate(8 + length + end)
            return truthful.edgecore_convert(copy, out, format, precision, options, limits, progress)
""",
    ),
    _convert(
        "file_not_listed",
        "a file of the artifact is not on its list",
        "convert.opens",
        """
@instead(folder, "convert")
def convert(was, *given):
    made = was(*given)
    return replace(made, files=tuple(f for f in made.files if f.path != "tokenizer_config.json"))
""",
    ),
    _convert(
        "writes_beside_its_folder",
        "convert writes a log beside the folder that it was given",
        "convert.outside",
        """
@instead(folder, "convert")
def convert(was, model, out, *rest):
    (out.parent / "convert.log").write_text("converted")
    return was(model, out, *rest)
""",
    ),
    _convert(
        "says_half_and_writes_full",
        "f16 is asked for, 32 bits a weight are written, and 16 are declared",
        "convert.opens",
        """
@instead(folder, "convert")
def convert(was, model, out, precision, vectors, limits, progress):
    made = was(model, out, "f32", vectors, limits, progress)
    declared = 16 if precision != "f32" else 32
    return replace(made, weights=replace(made.weights, bits_per_weight=declared, eligible_bits_per_weight=declared))
""",
    ),
    _convert(
        "unknown_precision_accepted",
        "a precision that there is not is taken for f16",
        "convert.refused",
        """
@instead(folder, "convert")
def convert(was, model, out, precision, *rest):
    return was(model, out, precision if precision in ("f32", "f16", "bf16") else "f16", *rest)
""",
    ),
    _convert(
        "longer_context_accepted",
        "a context longer than the model was trained for is promised",
        "convert.refused",
        """
@instead(folder, "convert")
def convert(was, model, out, precision, vectors, limits, progress):
    return was(model, out, precision, vectors, replace(limits, max_context=None), progress)
""",
    ),
    _convert(
        "order_by_hash",
        "tensors are written in the order of a set",
        "convert.deterministic",
        """
@instead(folder, "convert")
def convert(was, model, out, *rest):
    model.tensors = {name: model.tensors[name] for name in set(model.tensors)}
    return was(model, out, *rest)
""",
    ),
    _convert(
        "images_scaled_twice",
        "a tensor model gets its first weights divided by 255 once more",
        "convert.tensors",
        """
@hookimpl
def edgecore_convert(source, out, format, precision, options, limits, progress):
    made = truthful.edgecore_convert(source, out, format, precision, options, limits, progress)
    if format == "onnx":
        import onnx
        from onnx import numpy_helper

        model = onnx.load(out / "model.onnx")
        first = next(t for t in model.graph.initializer if len(t.dims) > 1)
        first.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(first) / np.float32(255), first.name))
        onnx.save(model, out / "model.onnx")
    return made
""",
    ),
    _convert(
        "last_layer_from_the_first",
        "the last layer's weights are the first one's",
        "text.logits",
        """
@instead(folder, "convert")
def convert(was, model, out, *rest):
    last = f"model.layers.{model.decoder.layers - 1}."
    copied = {
        name: replace(model.tensors[name.replace(last, "model.layers.0.")], name=name) if last in name else tensor
        for name, tensor in model.tensors.items()
    }
    model.tensors = copied
    return was(model, out, *rest)
""",
    ),
)
