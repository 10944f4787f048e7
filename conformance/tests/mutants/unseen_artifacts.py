"""Faults that were thought of before the checks were read (unseen.py): what convert and quantize make."""

from __future__ import annotations

from mutants.mutant import Mutant

CONVERT = "from edgecore_reference import folder\nimport json, shutil, tempfile\n"


def _convert(name: str, fault: str, checks: str, hooks: str) -> Mutant:
    return Mutant(name, fault, tuple(checks.split()), CONVERT + hooks, makes=True)


def _quantize(name: str, fault: str, checks: str, hooks: str) -> Mutant:
    return Mutant(name, fault, tuple(checks.split()), hooks, base="quantizer", makes=True)


MUTANTS = (
    _convert(
        "one_temporary_folder_for_all",
        "every convert works in the same temporary folder",
        "convert.killed",
        """
@instead(folder, "convert")
def convert(was, model, out, *rest):
    part = Path(tempfile.gettempdir()) / "converting"
    part.mkdir(exist_ok=True)
    made = was(model, part, *rest)
    for file in part.iterdir():
        shutil.move(file, out / file.name)
    return made
""",
    ),
    _convert(
        "linked_to_the_source",
        "files of the tokenizer are links to the source's",
        "convert.opens",
        """
@instead(folder, "convert")
def convert(was, model, out, *rest):
    made = was(model, out, *rest)
    for file in out.glob("tokenizer*"):
        if (model.path / file.name).is_file():
            file.unlink()
            file.symlink_to(model.path / file.name)
    return made
""",
    ),
    _convert(
        "needs_its_source",
        "the artifact remembers where its source lies, and opens while it lies there",
        "convert.opens",
        """
@instead(folder, "convert")
def convert(was, model, out, *rest):
    made = was(model, out, *rest)
    (out / "origin.json").write_text(json.dumps(str(model.path)))
    return replace(made, files=(*made.files, PayloadFile("origin.json", "other")))

@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    origin = artifact.path / "origin.json"
    if origin.is_file() and not Path(json.loads(origin.read_text())).exists():
        raise ModelNotFound("the source is gone")
    return truthful.edgecore_run(artifact, device, context_length, threads, options)
""",
    ),
    _convert(
        "bound_to_its_place",
        "the artifact holds the path at which it was made, and opens there alone",
        "convert.opens",
        """
@instead(folder, "convert")
def convert(was, model, out, *rest):
    made = was(model, out, *rest)
    (out / "place.json").write_text(json.dumps(str(out)))
    return replace(made, files=(*made.files, PayloadFile("place.json", "other")))

@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    place = artifact.path / "place.json"
    if place.is_file() and json.loads(place.read_text()) != str(artifact.path):
        raise CorruptModel("the artifact was moved")
    return truthful.edgecore_run(artifact, device, context_length, threads, options)
""",
    ),
    _convert(
        "spaces_end_a_path",
        "paths are handed to a shell, which splits them at spaces",
        "convert.opens",
        """
import subprocess

@hookimpl
def edgecore_convert(source, out, format, precision, options, limits, progress):
    if subprocess.run(f"ls {source} {out}", shell=True, capture_output=True).returncode:
        raise CorruptModel(f"{source}: cannot be opened")
    return truthful.edgecore_convert(source, out, format, precision, options, limits, progress)
""",
    ),
    _convert(
        "paths_of_ascii_only",
        "a path that has other letters than ASCII's cannot be opened",
        "convert.opens",
        """
@hookimpl
def edgecore_convert(source, out, format, precision, options, limits, progress):
    try:
        f"{source} {out}".encode("ascii")
    except UnicodeEncodeError:
        raise CorruptModel(f"{source}: cannot be opened") from None
    return truthful.edgecore_convert(source, out, format, precision, options, limits, progress)
""",
    ),
    _convert(
        "shards_unknown",
        "a checkpoint in several files is not found: model.safetensors is all that is looked for",
        "convert.anew",
        """
@hookimpl
def edgecore_convert(source, out, format, precision, options, limits, progress):
    if source.is_dir() and not (source / "model.safetensors").exists():
        raise ModelNotFound(f"{source}: has no model.safetensors")
    return truthful.edgecore_convert(source, out, format, precision, options, limits, progress)
""",
    ),
    _convert(
        "source_remembered_by_its_path",
        "a source that was converted before is not read again, whatever lies there now",
        "convert.anew",
        """
kept = {}

@hookimpl
def edgecore_convert(source, out, format, precision, options, limits, progress):
    key = (str(source), precision)
    if key not in kept:
        made = truthful.edgecore_convert(source, out, format, precision, options, limits, progress)
        kept[key] = made, {f.path: (out / f.path).read_bytes() for f in made.files}
        return made
    made, files = kept[key]
    for name, data in files.items():
        (out / name).write_bytes(data)
    progress(1, 1, "weights")
    return made
""",
    ),
    _quantize(
        "empty_blocks_are_nan",
        "a block of zeros is divided by its scale, which is zero",
        "quantize.words",
        """
@instead(truthful, "matrix_bytes")
def matrix_bytes(was, values, precision):
    packed = was(values, precision).copy()
    empty = ~values.reshape(len(values), -1, 32).any(axis=-1)
    packed.reshape(*empty.shape, -1)[empty, :2] = np.array([np.nan], np.float16).view(np.uint8)
    return packed
""",
    ),
    _quantize(
        "chat_template_lost",
        "the quantized artifact has no chat template",
        "quantize.words",
        """
import json

@hookimpl
def edgecore_quantize(artifact, out, precision, calibration, options, progress):
    made = truthful.edgecore_quantize(artifact, out, precision, calibration, options, progress)
    config = out / "tokenizer_config.json"
    facts = json.loads(config.read_text())
    facts.pop("chat_template", None)
    config.write_text(json.dumps(facts))
    (out / "chat_template.jinja").unlink(missing_ok=True)
    return replace(made, files=tuple(f for f in made.files if (out / f.path).exists()))
""",
    ),
    _quantize(
        "quantized_by_name",
        "blocks are remembered by the name of their tensor, whatever the model",
        "quantize.words",
        """
table = {}

@instead(truthful, "array")
def array(was, name, dtype, data):
    return was(name, dtype, table.setdefault((name, data.shape), data) if dtype == "U8" else data)
""",
    ),
    _quantize(
        "one_row_negated",
        "one row of one matrix has its signs turned",
        "quantize.weights",
        """
@instead(truthful, "matrix_bytes")
def matrix_bytes(was, values, precision):
    values = values.copy()
    if values.shape[0] < values.shape[1]:
        values[-1] *= -1
    return was(values, precision)
""",
    ),
)
