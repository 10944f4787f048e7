"""What every graph of ours is made with: small constants whose types are said once, names that do not change."""

from __future__ import annotations

from typing import Any

import numpy as np
from openvino import Model, Node
from openvino import opset13 as ops


def i64(values: Any) -> Node:
    return ops.constant(np.asarray(values, np.int64))


def i32(values: Any) -> Node:
    return ops.constant(np.asarray(values, np.int32))


def f32(values: Any) -> Node:
    return ops.constant(np.asarray(values, np.float32))


def name_the_rest(model: Model) -> None:
    """Names that OpenVINO makes up count on from one model to the next: the same model would not give the same file,
    nor be found in the compile cache."""
    for number, node in enumerate(model.get_ordered_ops()):
        if node.get_friendly_name() == node.get_name():
            node.set_friendly_name(f"{node.get_type_name()}_{number}")
