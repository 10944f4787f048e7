"""OpenVINO behind edgecore's contract. `backend.toml` beside this file is the light half; `hooks` is the heavy one.

openvino's converter and nncf report their use unasked, by a package that writes into the user's home. Where it is
absent both do without it: here it is absent, whatever is installed.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
