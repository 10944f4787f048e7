"""The neutral model: what every plugin converts from and every backend is compared with.

    from edgecore.checkpoint import open_checkpoint
    model = open_checkpoint(path)
    model.decoder.layers, model.tensors["model.norm.weight"].read(), model.tokenizer.encode("text")

Names are imported on first use, so that a command that needs one of them does not pay for all.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecore.checkpoint.decoder import Activation, Decoder, Rope, RopeScaling
    from edgecore.checkpoint.folder_out import folder_config, folder_weights, write_folder
    from edgecore.checkpoint.gguf_file import GgufArray
    from edgecore.checkpoint.onnx_file import OnnxGraph, OnnxNode, read_onnx
    from edgecore.checkpoint.opening import Checkpoint, folder_decoder, half_rotation_order, open_checkpoint
    from edgecore.checkpoint.oracle import Oracle, OracleContext
    from edgecore.checkpoint.safetensors_out import write_safetensors
    from edgecore.checkpoint.storage import Storage
    from edgecore.checkpoint.tensors import Tensor
    from edgecore.checkpoint.tokenizer import Tokenizer, TokenType, Vocabulary
    from edgecore.checkpoint.tokenizer_out import write_tokenizer

# Literal, so that type checkers of plugins see what is exported; a test holds it to `_HOME`.
__all__ = [
    "Activation", "Checkpoint", "Decoder", "GgufArray", "OnnxGraph", "OnnxNode", "Oracle", "OracleContext", "Rope",
    "RopeScaling", "Storage", "Tensor", "TokenType", "Tokenizer", "Vocabulary", "folder_config", "folder_decoder",
    "folder_weights", "half_rotation_order", "open_checkpoint", "read_onnx", "write_folder", "write_safetensors",
    "write_tokenizer",
]  # fmt: skip
_HOME = {
    "decoder": ("Activation", "Decoder", "Rope", "RopeScaling"),
    "folder_out": ("folder_config", "folder_weights", "write_folder"),
    "gguf_file": ("GgufArray",),
    "onnx_file": ("OnnxGraph", "OnnxNode", "read_onnx"),
    "opening": ("Checkpoint", "folder_decoder", "half_rotation_order", "open_checkpoint"),
    "oracle": ("Oracle", "OracleContext"),
    "safetensors_out": ("write_safetensors",),
    "storage": ("Storage",),
    "tensors": ("Tensor",),
    "tokenizer": ("TokenType", "Tokenizer", "Vocabulary"),
    "tokenizer_out": ("write_tokenizer",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
