"""What a tensor session costs above MLX's own call of an exported function: both in this process, in turn.

    python benchmarks/mlx_tensors.py                       # a tiny function, a perceptron, a convolution, attention
    python benchmarks/mlx_tensors.py model.mlxfn --shape input_0=1,224,224,3

*bare* is what a user writes: `mx.array` of each feed, the function, `mx.eval`, `numpy.array` of each answer. Ends with
1 where the session's median is above 1.03 x bare + 50 microseconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import latency
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from latency import Feeds, Models
from numpy.typing import NDArray

from edgecore_mlx.mlxfn import read


def bare(path: Path, threads: int) -> Callable[[Feeds], Iterable[NDArray[Any]]]:
    function, keywords = mx.import_function(str(path)), read(path).traces[0].keywords

    def call(feeds: Feeds) -> Iterable[NDArray[Any]]:
        named = {name: mx.array(feeds[name]) for name in keywords}
        answers = function(*(mx.array(feed) for name, feed in feeds.items() if name not in named), **named)
        mx.eval(answers)
        return [np.array(answer) for answer in answers]

    return call


def tiny(folder: Path) -> Path:
    """`y = relu(x @ w)`, 64 by 64: what is left is the call itself."""
    weight = mx.eye(64)
    mx.eval(weight)
    mx.export_function(str(folder / "tiny.mlxfn"), lambda x: nn.relu(x @ weight), mx.zeros((1, 64)))
    return folder / "tiny.mlxfn"


def made(folder: Path) -> Models:
    """Models of sizes that people deploy, with weights of no meaning."""
    mx.random.seed(1)
    layers = nn.Sequential(nn.Linear(512, 1024), nn.GELU(), nn.Linear(1024, 512), nn.LayerNorm(512))
    image = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU())
    block = nn.TransformerEncoderLayer(128, 4)
    mx.eval(layers.parameters(), image.parameters(), block.parameters())  # else what draws them is exported
    models: dict[str, tuple[Any, tuple[int, ...], bool]] = {
        "perceptron": (layers, (16, 512), False),
        "convolutions": (image, (1, 64, 64, 3), False),
        "convolutions-any-size": (image, (1, 64, 64, 3), True),
        "attention": (lambda x: block(x, None), (1, 32, 128), False),
    }
    for name, (model, shape, shapeless) in models.items():
        mx.export_function(str(folder / f"{name}.mlxfn"), model, mx.zeros(shape), shapeless=shapeless)
    return {str(folder / f"{name}.mlxfn"): {"input_0": shape} for name, (_, shape, _) in models.items()}


if __name__ == "__main__":
    sys.exit(latency.main(__doc__, "mlx", bare, tiny, made))
