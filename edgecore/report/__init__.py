"""One self-contained HTML page from one measurement: no script, no network, readable in ten years."""

from edgecore.report.page import Row, render

__all__ = ["Row", "render"]
