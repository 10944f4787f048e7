"""Where a plugin's hooks module is imported and called: inside a worker, or in the caller for `isolated=False`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from time import perf_counter
from typing import Any

import pluggy

from edgecore.contract import hookspecs
from edgecore.contract.artifacts import Artifact, Made
from edgecore.contract.errors import BackendUnavailable, CannotDo, EdgecoreError, PluginFault
from edgecore.contract.hookspecs import PROJECT, Probe
from edgecore.contract.measurement import Samples, Workload
from edgecore.contract.options import Value
from edgecore.contract.progress import Progress
from edgecore.contract.sessions import TensorSession, TextSession
from edgecore.workers.faults import as_error

PREFIX = f"{PROJECT}_"
HOOKS = tuple(name for name in vars(hookspecs) if name.startswith(PREFIX))
_ANSWERS: dict[str, tuple[type, ...]] = {
    "edgecore_probe": (Probe,),
    "edgecore_convert": (Made,),
    "edgecore_quantize": (Made,),
    "edgecore_compile": (Made,),
    "edgecore_run": (TextSession, TensorSession),
    "edgecore_benchmark": (Samples,),
    "edgecore_weights": (Mapping,),
}


class Host:
    """One backend, loaded."""

    def __init__(self, backend: str, module: str, search_path: Sequence[str] = ()) -> None:
        """Import the hooks module and check it. Raises `BackendUnavailable` when it cannot be imported, `PluginFault`
        when it implements what is no hook."""
        self.backend = backend
        for folder in reversed(search_path):
            if folder not in sys.path:
                sys.path.insert(0, folder)
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self.hooks = self._load(module, by_path=bool(search_path))

    def call(self, hook: str, arguments: Mapping[str, Any]) -> Any:
        """The hook's answer, of the type that the contract says. Raises only `EdgecoreError`."""
        if hook not in self.hooks and hook != "edgecore_benchmark":
            raise CannotDo(f"backend {self.backend!r} has no {hook.removeprefix(PREFIX)}")
        try:
            if hook not in self.hooks:
                return self._measure(**arguments)
            answer = getattr(self._manager.hook, hook)(**arguments)
            if answer is None and hook == "edgecore_benchmark":
                return self._measure(**arguments)
        except BaseException as error:  # KeyboardInterrupt and SystemExit of a plugin must not end the worker's loop.
            raise as_error(error, self.backend, hook) from error
        if not isinstance(answer, _ANSWERS[hook]):
            wanted = " or a ".join(kind.__name__ for kind in _ANSWERS[hook])
            raise PluginFault(f"backend {self.backend!r}: {hook} answered {answer!r:.200}, not a {wanted}")
        return answer

    def _measure(
        self, artifact: Artifact, device: str, workload: Workload, options: Mapping[str, Value], progress: Progress
    ) -> Samples:
        """The contract's own loop, for a backend that has none, or none for the task."""
        from edgecore.measure.loop import run_workload

        start = perf_counter()
        opened = self.call(
            "edgecore_run",
            {
                "artifact": artifact,
                "device": device,
                "context_length": workload.context_length,
                "threads": workload.threads,
                "options": options,
            },
        )
        with opened as session:
            return run_workload(session, workload, perf_counter() - start, progress)

    def _load(self, module: str, by_path: bool) -> frozenset[str]:
        try:
            plugin = importlib.import_module(module)
        except ImportError as error:
            raise _cannot_import(self.backend, module, error, by_path) from error
        except BaseException as error:
            raise as_error(error, self.backend, f"importing {module}") from error
        found = {name for name in dir(plugin) if name.startswith(PREFIX)}
        for name in sorted(found - set(HOOKS)):
            if callable(getattr(plugin, name)):
                near = get_close_matches(name, HOOKS, 1)
                raise PluginFault(
                    f"{module}.{name} is no hook" + (f"; did you mean {near[0]}?" if near else ""),
                    supported=", ".join(HOOKS),
                )
        try:
            self._manager.register(plugin, self.backend)
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PluginFault(f"backend {self.backend!r}: {' '.join(str(error).split())}") from error
        called = {c.name for c in self._manager.get_hookcallers(plugin) or ()}
        for name in sorted(found & set(HOOKS) - called):
            raise PluginFault(
                f"{module}.{name} is not marked", supported="from edgecore.contract import hookimpl; @hookimpl"
            )
        return frozenset(called)


def _cannot_import(backend: str, module: str, error: ImportError, by_path: bool) -> EdgecoreError:
    missing = error.name or ""
    what = f"backend {backend!r} cannot be loaded: importing {module}: {error}"
    if missing == module.partition(".")[0]:
        return PluginFault(f"{what}; the manifest names it as the hooks module")
    if by_path:
        return BackendUnavailable(what, hint=f"install what provides {missing or 'it'} for {sys.executable}")
    return BackendUnavailable(what, hint=_mend(backend))


def _mend(backend: str) -> str:
    from edgecore.environments import install_command

    if (Path(sys.prefix) / "environment.json").is_file():
        return f"edgecore plugin install {backend}"
    return install_command(backend, upgrade=True)
