"""mlx-lm's mixed recipes: which matrices get more bits. Same choice as `mlx_lm.convert.mixed_quant_predicate_builder`,
which wants a loaded model; a test holds the two to each other."""

from __future__ import annotations

from collections.abc import Mapping

BITS: Mapping[str, tuple[int, int]] = {
    "mixed_2_6": (2, 6),
    "mixed_3_4": (3, 4),
    "mixed_3_6": (3, 6),
    "mixed_4_6": (4, 6),
}
"""Few and more bits by name."""


def bits_of(name: str, path: str, layers: int) -> int:
    """Of the matrix at a module's path (`model.layers.3.mlp.down_proj`) by the recipe `name`."""
    few, more = BITS[name]
    if "lm_head" in path:
        return more
    favoured = "v_proj" in path or "down_proj" in path
    return more if favoured and _is_sensitive(_layer(path), layers) else few


def _layer(path: str) -> int:
    return next((int(part) for part in path.split(".") if part.isdigit()), 0)


def _is_sensitive(layer: int, layers: int) -> bool:
    """The first and the last eighth, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
