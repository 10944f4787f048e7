"""mlx-lm's mixed recipes: which matrices get more bits. Same choice as `mlx_lm.convert.mixed_quant_predicate_builder`,
which wants a loaded model; a test holds the two to each other. It gives more to an output head, and less to a table of
embeddings, which often is the head as well; here both have more."""

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
    layer = next((int(part) for part in path.split(".") if part.isdigit()), None)
    favoured = layer is None or (("v_proj" in path or "down_proj" in path) and _is_sensitive(layer, layers))
    return more if favoured else few


def _is_sensitive(layer: int, layers: int) -> bool:
    """The first and the last eighth, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
