"""The folder that is quantized: its matrices as numbers, which of them can be packed, and what its files say else."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgecore.checkpoint import Decoder, folder_decoder
from edgecore.checkpoint.gptq import Floats
from edgecore.contract import Fallback, UnsupportedModel
from edgecore_mlx import convert_text, folder, packing, usage
from edgecore_mlx.folder import Stored
from edgecore_mlx.recipe import AFFINE, Packing, Recipe
from edgecore_mlx.weights import Canonical, Weight, canonical, find, in_layer

_TABLE, _LAST_NORM = "model.embed_tokens.weight", "model.norm.weight"


@dataclass(frozen=True)
class Source:
    folder: Path

    @cached_property
    def weights(self) -> dict[str, Weight]:
        """By the names that they have there."""
        return find(self.folder)

    @cached_property
    def stored(self) -> dict[str, Stored]:
        return folder.tensors(self.folder)

    @cached_property
    def packed(self) -> dict[str, Packing]:
        """Matrices that are so already, by module path."""
        said = packing.quantization(folder.text_config(self.folder))
        paths = [name.removesuffix(".weight") for name in self.weights if name.endswith(".weight")]
        return {path: how for path in paths if (how := said.of(path, self.stored)) is not None}

    @cached_property
    def decoder(self) -> Decoder:
        """Raises `UnsupportedModel` for an architecture outside the neutral model."""
        found = folder_decoder(self.folder)
        if found is None:
            raise UnsupportedModel(
                f"{self.folder}: gptq computes families of the neutral model, and this is none",
                supported="algorithm rtn, mse, dwq or dynamic",
            )
        return found

    @cached_property
    def canonical(self) -> dict[str, Canonical]:
        return canonical(self.folder)

    @property
    def layers(self) -> int:
        numbers = [next((int(part) for part in name.split(".") if part.isdigit()), -1) for name in self.weights]
        return max(numbers, default=-1) + 1

    @cached_property
    def matrices(self) -> dict[str, Weight]:
        """What can be packed, by module path: of the neutral model every matrix that is not ternary, of others what
        mlx_lm would pack."""
        paths = {weight.path for weight in self.canonical.values()} if self.is_neutral else self._packable
        return {
            path: weight
            for path in paths
            if (weight := self.weights.get(f"{path}.weight")) and len(weight.shape) > 1 and not self.is_ternary(path)
        }

    @property
    def is_neutral(self) -> bool:
        """Of a family of the neutral model."""
        return folder_decoder(self.folder) is not None

    @cached_property
    def _packable(self) -> Mapping[str, bool | dict[str, Any]]:
        from edgecore_mlx.other import packable

        return packable(self.folder)

    @property
    def tied_head(self) -> str | None:
        """The module of an output head that is the table of embeddings; None where that is known of none."""
        return self.canonical[_TABLE].path if self.is_neutral and self.decoder.tied else None

    def use_of_head(self) -> Floats:
        """As far as it can be told without a text."""
        return usage.of_head(self.canonical[_TABLE], self.canonical[_LAST_NORM].read())

    def is_ternary(self, path: str) -> bool:
        return f"{path}.weight_scale" in self.stored

    def dtype(self, path: str) -> str:
        """Of scales and biases: the type that the model has there, by safetensors' name."""
        return self.stored[f"{path}.scales" if path in self.packed else f"{path}.weight"].dtype

    def plan(self, wanted: Recipe) -> dict[str, Packing]:
        """By module path; without what stays as it was."""
        planned = {path: wanted.plan(path, _flat(weight.shape)) for path, weight in self.matrices.items()}
        if not self.is_neutral and not wanted.mixed and wanted.mode == AFFINE:
            own = {path: how for path, how in self._packable.items() if isinstance(how, dict) and planned.get(path)}
            planned |= {path: Packing(int(how["bits"]), int(how["group_size"])) for path, how in own.items()}
        return {path: how for path, how in planned.items() if how is not None}

    def kept(self, plan: Mapping[str, Packing]) -> dict[str, Packing]:
        """What is packed, and wanted so or not wanted otherwise."""
        return {path: how for path, how in self.packed.items() if plan.get(path, how) == how}

    def config(self, plan: Mapping[str, Packing]) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.folder / folder.CONFIG).read_text(encoding="utf-8"))
        values.pop(packing.KEYS[0], None)
        if not packing.is_ternary(folder.text_config(self.folder)):
            values.pop(packing.KEYS[1], None)
        return packing.with_quantization(values, {**self.kept(plan), **plan})

    def fallbacks(self, wanted: Recipe, plan: Mapping[str, Packing]) -> Iterator[Fallback]:
        """Matrices of the layers that have smaller groups than the recipe plans for, or stayed as they were."""
        for weight in filter(in_layer, self.weights.values()):
            path, columns = weight.name.removesuffix(".weight"), weight.shape[-1]
            how = plan.get(path)
            if self.is_ternary(path):
                yield Fallback(weight.name, "ternary", "has fewer bits than were asked for, and loses nothing so")
            elif path in self.matrices and (how is None or how.group_size < wanted.group_size):
                got = f"{how.bits} bits, groups of {how.group_size}" if how else self.stored[weight.name].dtype
                yield Fallback(weight.name, got, f"rows of {columns} cannot be cut into groups of {wanted.group_size}")

    def what_became(self, notes: Sequence[str], plan: Mapping[str, Packing]) -> Iterator[str]:
        """What was said of the source, as far as it is so still."""
        yield from (note for note in notes if not note.startswith(convert_text.KEPT))
        if anew := len(self.packed) - len(self.kept(plan)):
            yield f"matrices that the source has in few bits, rounded once more: {anew}"


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    """Experts stand one below the other."""
    return math.prod(shape[:-1]), shape[-1]
