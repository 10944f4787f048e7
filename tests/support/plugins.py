"""Real plugins for tests, written to a folder: numpy only, each with the behaviour that its test is about."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

from edgecore.contract.artifacts import Artifact, PayloadFile

MANIFEST = """\
name = "{name}"
title = "{name} for tests"
summary = "A plugin that a test wrote"
contract = "{contract}"
hooks = "{package}.hooks"
distribution = "{distribution}"
sources = ["gguf", "huggingface"]

[runtime]
distribution = "numpy"

[capabilities]
logits = true

[[devices]]
name = "cpu"

[[formats]]
name = "toy"
task = "text"
suffixes = [".toy"]

[[precisions]]
name = "f16"
bits = 16
by = "convert"

[[claims]]
task = "text"
families = ["llama"]
formats = ["toy"]
precisions = ["f16"]
devices = ["cpu"]
"""

TOY = '''\
"""A language model over bytes: the next token is the last one plus one, and 0 ends a generation."""
import ctypes, os, signal, subprocess, sys, time
from pathlib import Path
import numpy as np
from edgecore.contract import (
    BadRequest, Cancelled, DoesNotFit, Made, PayloadFile, Piece, Placement, PlacementSource, Probe, ProbedDevice,
    TensorSession, TensorSpec, TextContext, TextSession, UnsupportedModel, hookimpl,
)

VOCAB = 256


class Context(TextContext):
    def __init__(self, session):
        self.session, self.held = session, []

    @property
    def tokens(self):
        return self.held

    def prefill(self, tokens):
        if len(self.held) + len(tokens) > self.session.context_length:
            raise DoesNotFit("the context is full")
        for token in tokens:
            if not 0 <= token < self.session.vocab_size:
                raise BadRequest(f"token {token} is not in the vocabulary")
        self.held += tokens
        return logits_after(tokens[-1], self.session.vocab_size)

    def step(self, token):
        if self.session.step_seconds:
            time.sleep(self.session.step_seconds)
        return self.prefill([token])

    def rewind(self, n):
        if n > len(self.held):
            raise BadRequest("fewer tokens than that")
        del self.held[len(self.held) - n:]

    def reset(self):
        self.held.clear()


def logits_after(token, vocab):
    logits = np.zeros(vocab, dtype=np.float32)
    logits[(token + 1) % 256] = 10
    return logits


class Session(TextSession):
    context_length = 4096
    vocab_size = VOCAB
    eos_ids = frozenset({0})

    def __init__(self, options):
        self.step_seconds = options.get("step_seconds", 0)
        self.vocab_size = options.get("vocab", VOCAB)
        self.own = Context(self)

    @property
    def placement(self):
        return Placement(PlacementSource.RUNTIME_PROFILE, time={"cpu": 1.0})

    @property
    def conditions(self):
        return {"device": "cpu", "threads": "1"}

    def tokenize(self, text, add_special=True, parse_special=False):
        return list(text.encode())

    def token_bytes(self, token):
        return bytes([token])

    def apply_chat(self, messages):
        return "".join(f"<{m['role']}>{m['content']}" for m in messages)

    def context(self):
        return self.own

    def score(self, tokens):
        for start in range(0, len(tokens), 4):
            yield np.stack([logits_after(t, self.vocab_size) for t in tokens[start:start + 4]])

    def close(self):
        pass


class Doubler(TensorSession):
    inputs = (TensorSpec("x", "float32", ("n",)),)
    outputs = (TensorSpec("y", "float32", ("n",)),)
    placement = Placement()

    def __call__(self, feeds):
        if "x" not in feeds:
            raise BadRequest("input 'x' is missing", supported="x")
        return {"y": feeds["x"] + feeds["x"]}

    def close(self):
        pass


@hookimpl
def edgecore_probe():
    devices = (ProbedDevice("cpu", True, "the toy"), ProbedDevice("npu", False, reason="there is none"))
    return Probe(devices, {"numpy": np.__version__}, {"EDGECORE": os.environ.get("DO_NOT_TRACK", "unset")})


@hookimpl
def edgecore_convert(source, out, format, precision, options, limits, progress):
    for done in range(5):
        progress(done, 4, "converting")
    (out / "model.toy").write_bytes(source.read_bytes())
    return Made((PayloadFile("model.toy", "model"),), notes=(f"max_context {limits.max_context}",))


@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    return Session(options) if artifact.task == "text" else Doubler()


@hookimpl
def edgecore_weights(artifact):
    return {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(100_000, dtype=np.float32)}
'''


def write_plugin(
    folder: Path, name: str = "toy", *, hooks: str = "", extra: str = TOY, manifest: str = "", contract: str = "1.0"
) -> Path:
    """A plugin under development: the folder can be named by path. `hooks` follows `extra` in its hooks module, so that
    it may replace what the toy does."""
    package = folder / f"edgecore_{name}"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    text = MANIFEST.format(name=name, contract=contract, package=package.name, distribution=f"edgecore-{name}")
    (package / "backend.toml").write_text(manifest or text)
    (package / "hooks.py").write_text(extra + "\n\n" + dedent(hooks))
    return folder


def install_plugin(site: Path, name: str = "toy", *, version: str = "1.0", distribution: str = "", **how: str) -> Path:
    """The same as an installer leaves it in a folder of `sys.path`. Answers the metadata folder."""
    write_plugin(site, name, **how)
    return write_metadata(
        site, distribution or f"edgecore-{name}", version, {"edgecore.backends": {name: f"edgecore_{name}"}}
    )


def write_metadata(site: Path, distribution: str, version: str, groups: dict[str, dict[str, str]]) -> Path:
    """`*.dist-info` with entry points."""
    info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return info


def toy_artifact(folder: Path, task: str = "text") -> Artifact:
    """What the toy opens."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.toy").write_bytes(b"toy")
    return Artifact(folder, "toy", task, "toy", "f16", (PayloadFile("model.toy", "model", 3),), id="toy-1")
