"""The caller's pluggy manager: one proxy a call stands for the backend, and wrappers stay in every call.

A wrapper comes from the entry point group `edgecore.wrappers` and is a hook wrapper (`hookimpl(wrapper=True)`), nothing
else: an implementation there would answer in the backend's place, and is refused.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol

import pluggy

from edgecore.contract import hookspecs
from edgecore.contract.hookspecs import PROJECT, hookimpl


class Target(Protocol):
    """Whatever answers hooks: a worker, or this process."""

    def invoke(self, hook: str, arguments: Mapping[str, Any], deadline: float | None) -> Any: ...


def call(hook: str, target: Target, deadline: float | None, arguments: Mapping[str, Any]) -> Any:
    """One hook call to one backend, through every wrapper.

    The manager lives for this call: in a shared one, a call from another thread could get this backend's answer.
    """
    manager = _manager()
    for name, plugin in _wrappers():
        manager.register(plugin, name)
    manager.register(_Proxy(target, deadline))
    return getattr(manager.hook, hook)(**arguments)


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


@cache
def _wrappers() -> tuple[tuple[str, Any], ...]:
    from edgecore.registry import discover

    found = []
    for name, reference in discover().wrappers.items():
        try:
            found.append((name, _load(name, reference)))
        except Exception as error:
            warnings.warn(f"the hook wrapper {name!r} ({reference}) is not used: {error}", stacklevel=2)
    return tuple(found)


def _load(name: str, reference: str) -> Any:
    """The wrapper, checked in a manager of its own."""
    module, _, attribute = reference.partition(":")
    plugin: Any = importlib.import_module(module)
    for part in filter(None, attribute.split(".")):
        plugin = getattr(plugin, part)
    manager = _manager()
    manager.register(plugin, name)
    manager.check_pending()
    for caller in manager.get_hookcallers(plugin) or ():
        if any(not (i.wrapper or i.hookwrapper) for i in caller.get_hookimpls()):
            raise TypeError(f"{caller.name} is an implementation, not a wrapper")
    return plugin


class _Proxy:
    """Stands for the backend in the caller's manager during one call."""

    def __init__(self, target: Target, deadline: float | None) -> None:
        self._target, self._deadline = target, deadline

    @hookimpl
    def edgecore_probe(self) -> Any:
        return self._target.invoke("edgecore_probe", {}, self._deadline)

    @hookimpl
    def edgecore_convert(
        self, source: Any, out: Any, format: Any, precision: Any, options: Any, limits: Any, progress: Any
    ) -> Any:
        return self._forward("edgecore_convert", locals())

    @hookimpl
    def edgecore_quantize(
        self, artifact: Any, out: Any, precision: Any, calibration: Any, options: Any, progress: Any
    ) -> Any:
        return self._forward("edgecore_quantize", locals())

    @hookimpl
    def edgecore_run(self, artifact: Any, device: Any, context_length: Any, threads: Any, options: Any) -> Any:
        return self._forward("edgecore_run", locals())

    @hookimpl
    def edgecore_benchmark(self, artifact: Any, device: Any, workload: Any, options: Any, progress: Any) -> Any:
        return self._forward("edgecore_benchmark", locals())

    @hookimpl
    def edgecore_weights(self, artifact: Any) -> Any:
        return self._forward("edgecore_weights", locals())

    @hookimpl
    def edgecore_compile(
        self, artifact: Any, out: Any, profile: Any, options: Any, progress: Any, device: Any = ""
    ) -> Any:
        return self._forward("edgecore_compile", locals())

    def _forward(self, hook: str, arguments: dict[str, Any]) -> Any:
        return self._target.invoke(hook, {k: v for k, v in arguments.items() if k != "self"}, self._deadline)
