"""An IR written whole, or an error in the contract's words. What OpenVINO could not finish it has removed itself."""

from __future__ import annotations

from pathlib import Path

import openvino as ov

from edgecore.contract import DoesNotFit, check_room, full_disk


def save(model: ov.Model, xml: Path, *, compressed: bool = False) -> None:
    """`xml` and the .bin beside it; `compressed` keeps float32 weights in 16 bits. Raises `DoesNotFit`."""
    with full_disk(xml):
        try:
            ov.save_model(model, xml, compress_to_fp16=compressed)
        except RuntimeError as error:
            check_room(xml.with_suffix(".bin"))
            if "iostream error" not in str(error):
                raise
            # All that it says when a write failed; by then its own files, and with them what filled the disk, are gone.
            raise DoesNotFit(
                f"{xml.with_suffix('.bin')}: no room to write it, or it grew beyond a limit",
                hint="edgecore cache ls, then edgecore cache rm ID",
            ) from error
