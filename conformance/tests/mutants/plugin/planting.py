"""How a fault is planted: one attribute is replaced by a function that gets what was there as its first argument.

    @instead(OracleSession, "tokenize")
    def tokenize(was, self, text, add_special=True, parse_special=False):
        return was(self, text.lstrip(), add_special, parse_special)

This happens in the worker only: what the suite compares with is computed in its own process.
"""

import inspect
from functools import partial


def instead(owner, name):
    def plant(new):
        there = inspect.getattr_static(owner, name)
        if isinstance(there, property):
            setattr(owner, name, property(partial(new, there.fget)))
            return new
        was = getattr(owner, name)

        def planted(*arguments, **keywords):
            return new(was, *arguments, **keywords)

        setattr(owner, name, planted)
        return new

    return plant
