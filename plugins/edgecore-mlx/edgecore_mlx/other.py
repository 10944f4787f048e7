"""Architectures outside the neutral model, computed by mlx_lm's own code, behind the same words as decoder.py's.

mlx_lm knows well over a hundred. Code that comes with a folder is never run. What mlx_lm computes otherwise than the
model's authors did is not known here: nothing else computes these to compare them with.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

from edgecore.checkpoint.beside import text_config
from edgecore.contract import CorruptModel, UnsupportedModel
from edgecore_mlx import installation
from edgecore_mlx.folder import tensors

_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
SUPPORTED = "architectures of the neutral model, and those that mlx_lm has"


class OtherCache:
    """mlx_lm's caches, one a layer: buffers of keys and values, rings of a window, states of a recurrent layer."""

    def __init__(self, layers: list[Any], trim: Callable[[list[Any], int], int]) -> None:
        self.filled = 0
        self.long = False
        self.layers = layers
        self._trim = trim

    def whole(self, count: int) -> int:
        """A state cannot forget its last tokens, nor can a ring that went round: none are kept then."""
        return count if all(layer.is_trimmable() for layer in self.layers) else 0

    def cut(self, count: int) -> None:
        self._trim(self.layers, self.filled - count)
        self.filled = count

    @property
    def arrays(self) -> list[Any]:
        return [layer.state for layer in self.layers]


class Other:
    """A model of mlx_lm's. It gives logits of every position, whether they are wanted or not."""

    sliced = False

    def __init__(self, model: Any) -> None:
        from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

        self._model = model
        self._made, self._trim = make_prompt_cache, trim_prompt_cache
        logits = self(mx.array([0]), self.new_cache())
        mx.eval(logits)  # constants of the model too, which belong to this thread until they are computed
        self.vocab_size = int(logits.shape[-1])

    def new_cache(self) -> OtherCache:
        return OtherCache(self._made(self._model), self._trim)

    def __call__(self, tokens: mx.array, cache: OtherCache, last: int | None = None) -> mx.array:
        """As decoder.py's `Model`."""
        logits: mx.array = self._model(tokens[None], cache=cache.layers)[0]
        cache.filled += int(tokens.size)
        return (logits if last is None else logits[-last:]).astype(mx.float32)


def load(folder: Path, dtype: mx.Dtype | None) -> tuple[Other, mx.Dtype]:
    """The model with its numbers as `dtype`, None: as the folder has them; and what they are then.

    Raises `UnsupportedModel` for an architecture that mlx_lm has not, `CorruptModel`, `BackendUnavailable`.
    """
    _check_layers(folder)
    installation.mlx_lm()
    from mlx.utils import tree_flatten, tree_map
    from mlx_lm.utils import load_model

    try:
        model, _ = load_model(folder, lazy=True, strict=True)
        if dtype is not None:
            model.update(tree_map(lambda a: a.astype(dtype) if _is_float(a) else a, model.parameters()))
        weights = dict(tree_flatten(model.parameters()))
        mx.eval(model.parameters())
        opened = Other(model)
    except Exception as error:  # of its hundred modules each fails in its own way
        raise _refused(folder, error) from None
    floats = [(name, array) for name, array in weights.items() if _is_float(array)]
    if wrong := next((name for name, array in floats if not mx.isfinite(array).all().item()), None):
        raise CorruptModel(f"{folder}: tensor {wrong!r}: holds weights that are NaN or infinite")
    return opened, floats[0][1].dtype if floats else mx.float32


def packable(folder: Path) -> dict[str, bool | dict[str, Any]]:
    """What mlx_lm would pack of a folder, by module path; a dictionary says how, where the architecture has a mind of
    its own. Raises as `load`, and reads no weights."""
    installation.mlx_lm()
    from mlx.nn import Module
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model

    try:
        model, _ = load_model(folder, lazy=True, strict=True)
    except Exception as error:
        raise _refused(folder, error) from None
    wanted = getattr(model, "quant_predicate", None) or (lambda path, module: True)
    leaves = tree_flatten(model.leaf_modules(), is_leaf=Module.is_module)
    found = {path: wanted(path, module) for path, module in leaves if hasattr(module, "to_quantized")}
    return {path: how for path, how in found.items() if how}


def _check_layers(folder: Path) -> None:
    """mlx_lm builds as many layers as it is told, however long that takes. Each has a tensor of its own at least."""
    config, most = text_config(folder), len(tensors(folder))
    for key in _LAYERS:
        if isinstance(count := config.values.get(key), int) and count > most:
            raise CorruptModel(f"{config.file}: field {key!r}: {count} layers, and {most} tensors")


def _is_float(array: mx.array) -> bool:
    return bool(mx.issubdtype(array.dtype, mx.floating))


def _refused(folder: Path, error: Exception) -> Exception:
    words = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError):
        return error
    if isinstance(error, ValueError) and "not supported" in words:
        return UnsupportedModel(
            f"{folder}: {words.rstrip('.')} by mlx_lm {installation.mlx_lm().__version__}",
            supported=SUPPORTED,
            hint=f"edgecore inspect {folder}",
        )
    return CorruptModel(f"{folder}: mlx_lm cannot load it: {type(error).__name__}: {words}")
