"""Interpreters of their own for plugins and exporters, because their dependencies cannot live together (optimum-intel
against mlx-lm, onnxruntime's wheels against each other), and the one place that knows how anything of edgecore is
installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgecore.environments.commands import exporter_command, install_command, known_plugins

if TYPE_CHECKING:
    from edgecore.environments.manage import Environment, find_exporter, install, list_environments, remove

__all__ = [
    "Environment",
    "exporter_command",
    "find_exporter",
    "install",
    "install_command",
    "known_plugins",
    "list_environments",
    "remove",
]


def __getattr__(name: str) -> Any:
    # Printing a command must not cost what making an environment costs.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from edgecore.environments import manage

    return getattr(manage, name)
