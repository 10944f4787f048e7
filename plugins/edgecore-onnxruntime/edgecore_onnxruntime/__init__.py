"""ONNX Runtime behind edgecore's contract. `backend.toml` beside this file is the light half; `hooks` is the heavy one."""
