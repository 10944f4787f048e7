"""Chips with a Hexagon NPU: their names, Qualcomm's numbers of them, and the one that is here."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from edgecore.contract import BadRequest

NPU, EMULATOR = "npu", "npu-emulator"
DEVICES = (NPU, EMULATOR)
CHIPS = {
    "SM8350": 30, "SM8450": 36, "SC8280X": 37, "SM8475": 42, "SM8550": 43, "SM8650": 57, "SC8380XP": 60, "QCS8550": 66,
    "SM8635": 68, "SM8750": 69, "QCS9100": 77, "SM8735": 85, "SM8850": 87, "SC8480XP": 88, "QCS6490": 93, "SM8845": 97,
}  # fmt: skip
"""The number (QNN's `soc_model`) by the name, as QNN 2.51 writes both into what it compiles: those that people buy with
a Hexagon tensor processor (HTP)."""
OLDEST = frozenset({"SM8350", "SC8280X", "SM8475", "QCS6490"})
"""Those that QNN compiles for as for Hexagon v68. Beside another kind in one process the emulator fails."""
EMULATED = "SM8750"
"""What the emulator plays where no chip is named. It must play one: without, some operators answer differently."""
_BRANDS = {"X1E": "SC8380XP", "X1P64": "SC8380XP", "X1P66": "SC8380XP", "X2E": "SC8480XP"}
"""How Windows names processors: `Snapdragon(R) X Elite - X1E78100 - Qualcomm(R) Oryon(TM) CPU`."""


def chip(asked: str) -> str:
    """The name of a chip that is given by name or number. Raises `BadRequest`."""
    name = asked.strip().upper()
    if name not in CHIPS:
        name = next((known for known, number in CHIPS.items() if str(number) == name), "")
    if not name:
        raise BadRequest(
            f"soc_model={asked}: no chip with an NPU that QNN compiles for",
            supported=", ".join(f"{known} ({number})" for known, number in CHIPS.items()),
        )
    return name


def chip_here() -> str:
    """The chip's name as the system tells it; empty where it does not, or says one that we do not know."""
    if platform.system() == "Windows":
        return next((known for brand, known in _BRANDS.items() if f"- {brand}" in _windows_processor()), "")
    file = Path("/sys/devices/soc0/machine")
    name = file.read_text(errors="replace").strip().upper() if file.is_file() else ""
    return name if name in CHIPS else ""


def _windows_processor() -> str:
    try:
        import winreg
    except ImportError:
        return ""
    registry: Any = winreg
    try:
        with registry.OpenKey(registry.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key:
            return str(registry.QueryValueEx(key, "ProcessorNameString")[0])
    except OSError:
        return ""
