"""Small constants: every one made through here, so that their types are said once."""

from __future__ import annotations

from typing import Any

import numpy as np
from openvino import Node
from openvino import opset13 as ops


def i64(values: Any) -> Node:
    return ops.constant(np.asarray(values, np.int64))


def i32(values: Any) -> Node:
    return ops.constant(np.asarray(values, np.int32))


def f32(values: Any) -> Node:
    return ops.constant(np.asarray(values, np.float32))
