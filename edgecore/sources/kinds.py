"""What a path is, from what it contains and not from what it is called."""

from __future__ import annotations

from pathlib import Path

from edgecore.checkpoint import onnx_file
from edgecore.contract.errors import BadRequest, CorruptModel, EdgecoreError, ModelNotFound, UnsupportedModel
from edgecore.sources import gguf_header

KINDS = ("gguf", "huggingface", "onnx")
SUPPORTED = "a GGUF file, a Hugging Face folder (config.json and *.safetensors), an ONNX file"
MODEL_SUFFIXES = (".gguf", ".onnx")
_NOT_A_MODEL = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file that it stands for", "git lfs pull"),
    (b"<!doctype", "an HTML page", "fetch the file itself, not the page about it"),
    (b"<html", "an HTML page", "fetch the file itself, not the page about it"),
)


def detect(path: Path) -> str:
    """`gguf`, `huggingface` or `onnx`, from headers alone.

    Raises `ModelNotFound` for what is not there, `CorruptModel` for what is empty, truncated or not what its name
    says, `UnsupportedModel` for everything else.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _detect_folder(path)
        if not path.exists():
            raise ModelNotFound(f"{path} does not exist", supported=SUPPORTED)
        if not path.is_file():
            raise UnsupportedModel(f"{path} is neither a file nor a folder", supported=SUPPORTED)
        return _detect_file(path)
    except PermissionError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}") from error


def sniff(path: Path) -> str:
    """`gguf`, `onnx` or empty, from the first bytes."""
    with path.open("rb") as file:
        start = file.read(256)
    if start.startswith(gguf_header.MAGIC):
        return "gguf"
    return "onnx" if onnx_file.looks_like_onnx(start) else ""


def _detect_file(path: Path) -> str:
    if path.stat().st_size == 0:
        raise CorruptModel(f"{path} is empty", hint="fetch it again")
    kind = sniff(path)
    if kind == "gguf":
        gguf_header.read_header(path)
    elif kind == "onnx":
        try:
            onnx_file.read_header(path)
        except CorruptModel:
            if path.suffix.lower() == ".onnx":
                raise
            kind = ""
    if not kind:
        raise _not_ours(path)
    return kind


def _not_ours(path: Path) -> EdgecoreError:
    with path.open("rb") as file:
        start = file.read(256)
    for magic, what, hint in _NOT_A_MODEL:
        if start.lower().startswith(magic):
            return CorruptModel(f"{path} is {what}", supported=SUPPORTED, hint=hint)
    if path.suffix.lower() in MODEL_SUFFIXES:
        named = path.suffix.lower()
        return CorruptModel(f"{path} is named *{named} and is no such file: it begins with {start[:8]!r}")
    if path.suffix == ".safetensors":
        return UnsupportedModel(
            f"{path} is only the weights",
            supported="the folder with its config.json",
            hint=f"edgecore inspect {path.parent}",
        )
    return UnsupportedModel(f"{path} is no model that is known here", supported=SUPPORTED)


def _detect_folder(path: Path) -> str:
    names = sorted(p.name for p in path.iterdir() if p.name[0] != ".")
    shards = [name for name in names if name.endswith(".safetensors")]
    if "config.json" in names and shards:
        for name in shards:
            _check_safetensors(path / name)
        _check_index(path)
        return "huggingface"
    if not names:
        raise ModelNotFound(f"{path} is an empty folder", supported=SUPPORTED)
    models = [name for name in names if name.lower().endswith(MODEL_SUFFIXES)]
    if models:
        raise UnsupportedModel(
            f"{path} is a folder with {', '.join(models[:8])}",
            supported=SUPPORTED,
            hint=f"edgecore inspect {path / models[0]}",
        )
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        raise UnsupportedModel(
            f"{path} has its weights as pickles, which run code when they are read", supported="*.safetensors"
        )
    missing = "*.safetensors" if "config.json" in names else "config.json"
    raise UnsupportedModel(f"{path} is no Hugging Face folder: {missing} is missing", supported=SUPPORTED)


def _check_safetensors(path: Path) -> None:
    """Header and length agree. A dtype that is not known here is for whoever reads the weights to refuse."""
    from edgecore.checkpoint.safetensors_file import read_file

    try:
        read_file(path, path.parent)
    except CorruptModel as error:
        raise CorruptModel(f"{error.what}: truncated or damaged", hint="fetch it again") from None


def _check_index(path: Path) -> None:
    """Every shard that the index names is there; a file that holds all does without."""
    from edgecore.checkpoint.mapping import read_text
    from edgecore.checkpoint.safetensors_file import INDEX, LONGEST_INDEX, SINGLE, parse_index

    index = path / INDEX
    if not index.is_file() or (path / SINGLE).is_file():
        return
    named = set(parse_index(index, read_text(index, LONGEST_INDEX)).values())
    if missing := sorted(name for name in named if not (path / name).is_file()):
        raise CorruptModel(f"{path}: {', '.join(missing)} missing, which {index.name} names")
