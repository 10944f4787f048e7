"""What is published: fixtures, bounds, the inputs that a seed draws, and the oracle's answers to them.

A judgement may use nothing else, so that a third person who has this distribution comes to the same verdict.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.checkpoint.tokenizer import Tokenizer
from edgecore.contract.manifest import Manifest
from edgecore.quality.bounds import Bounds, bounds
from edgecore_conformance import fixtures

if TYPE_CHECKING:
    from edgecore_conformance.scripted import Script

SCRIPTED = "scripted"
"""A Llama that says what a script says, which the seed draws (scripted.py)."""
LONG = "long"
"""The random Llama, with a longer context than any checkpoint here needs otherwise."""
LONG_CONTEXT = 2048
TRAINED = "trained"
"""The fixture that has learnt something; every other text fixture is a random checkpoint named by its family."""
EMULATED_CONTEXT = 64
"""Tokens that language models are converted for where the device is emulated: an emulator takes for one what the device
takes for hundreds."""
PATIENCE = 6
"""How many times a row's deadline is given to an emulated device."""


def concerning(manifest: Manifest, device: str) -> Manifest:
    """The manifest as far as it is about a device: the claims of it, the formats and precisions that these name, and
    those that no claim names; options of these precisions. All of it where no claim is about the device."""
    claims = tuple(c for c in manifest.claims if c.device == device)
    if not claims:
        return manifest

    def kept(field: str, name: str) -> bool:
        return name in {getattr(c, field) for c in claims} or name not in {getattr(c, field) for c in manifest.claims}

    return replace(
        manifest,
        claims=claims,
        formats=tuple(f for f in manifest.formats if kept("format", f.name)),
        precisions=(precisions := tuple(p for p in manifest.precisions if kept("precision", p.name))),
        options={
            verb: tuple(o for o in options if not o.precisions or {p.name for p in precisions} & set(o.precisions))
            for verb, options in manifest.options.items()
        },
    )


@dataclass
class Known:
    """One run's published half. `seed` 0 is everybody's; another was chosen by whoever asked for the run."""

    manifest: Manifest
    """As far as it is about the device of the run (`concerning`): what checks ask for is what is claimed there."""
    device: str
    level: str = "quick"
    seed: int = 0
    model: Path | None = None
    """A model of the user's for level `full`, in the place of SmolLM2."""
    whole: Manifest = field(init=False, repr=False)
    """The whole manifest."""
    _logits: dict[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)
    _tokenizers: dict[str, Tokenizer] = field(default_factory=dict, repr=False)
    _folders: list[tempfile.TemporaryDirectory[str]] = field(default_factory=list, repr=False)
    _trained: dict[str, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.whole = self.manifest
        self.manifest = concerning(self.whole, self.device)

    @property
    def emulated(self) -> bool:
        """Whether the device of the run only promises what another does: its times are no speed."""
        declared = self.whole.device(self.device)
        return declared is not None and declared.emulated

    @property
    def max_context(self) -> int | None:
        """What convert is asked to make language models for; None: for what they were trained for."""
        return EMULATED_CONTEXT if self.emulated else None

    def context(self, fixture: str) -> int:
        """Tokens that an artifact of a fixture holds in this run."""
        if fixture not in self._trained:
            with open_checkpoint(self.fixture(fixture)) as model:
                self._trained[fixture] = model.decoder.context_length
        return min(self._trained[fixture], self.max_context or self._trained[fixture])

    def patient(self, seconds: float) -> float:
        """A deadline on the device of the run."""
        return seconds * (PATIENCE if self.emulated else 1)

    def fixture(self, name: str) -> Path:
        """A Hugging Face folder: `trained`, `scripted`, `long`, a family's random one, or `real` (level full)."""
        if name == SCRIPTED:
            return self._scripted
        if name == LONG:
            return self._long
        if name == TRAINED:
            return fixtures.language_model()
        if name == "real":
            return fixtures.real_model(self.model)
        return fixtures.family(name)

    def tokenizer(self, fixture: str) -> Tokenizer:
        if fixture not in self._tokenizers:
            self._tokenizers[fixture] = open_checkpoint(self.fixture(fixture)).tokenizer
        return self._tokenizers[fixture]

    def text(self, purpose: str, length: int) -> str:
        """`length` characters of the held-out text, from a place that seed and purpose choose."""
        whole = fixtures.held_out_text()
        start = self.draw(purpose).randrange(max(1, len(whole) - length))
        start = whole.find(" ", start) + 1
        return whole[start : start + length]

    def tokens(self, fixture: str, purpose: str, count: int) -> list[int]:
        """`count` ids: of the held-out text for a trained model, any for a random one."""
        if fixture in (TRAINED, "real"):
            return self.tokenizer(fixture).encode(self.text(purpose, 8 * count))[:count]
        vocabulary = open_checkpoint(self.fixture(fixture)).decoder.vocab_size
        draw = self.draw(f"{fixture} {purpose}")
        return [draw.randrange(vocabulary) for _ in range(count)]

    def draw(self, purpose: str) -> random.Random:
        """Numbers that depend on the seed and the purpose, and on nothing that ran before."""
        return random.Random(hashlib.sha256(f"{self.seed} {purpose}".encode()).digest())

    def logits(self, fixture: str, tokens: Sequence[int]) -> NDArray[np.float32]:
        """(len(tokens), vocab) of the oracle, remembered."""
        key = hashlib.sha256(f"{fixture} {list(tokens)}".encode()).hexdigest()
        if key not in self._logits:
            with open_checkpoint(self.fixture(fixture)) as model:
                self._logits[key] = np.concatenate(list(Oracle(model.decoder, model.tensors).score(tokens)))
        return self._logits[key]

    @cached_property
    def script(self) -> Script:
        """What the fixture `scripted` says."""
        from edgecore_conformance.scripted import script

        return script(self.tokenizer(TRAINED), self.draw("script"))

    @cached_property
    def _scripted(self) -> Path:
        from edgecore_conformance.scripted import write

        return write(self._folder("scripted"), fixtures.language_model(), self.tokenizer(TRAINED), self.script)

    @cached_property
    def _long(self) -> Path:
        made = self._folder("long")
        shutil.copytree(fixtures.family("llama"), made, copy_function=shutil.copyfile, dirs_exist_ok=True)
        config = json.loads((made / "config.json").read_text(encoding="utf-8"))
        config["max_position_embeddings"] = LONG_CONTEXT
        (made / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        return made

    def _folder(self, name: str) -> Path:
        """A new one, that goes when this does."""
        self._folders.append(tempfile.TemporaryDirectory(prefix=f"edgecore-conformance-{name}-"))
        return Path(self._folders[-1].name)

    @cached_property
    def bounds(self) -> Bounds:
        return bounds()
