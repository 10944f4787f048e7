"""What this computer is, what this process may use of it, and which profile describes it.

Nothing here is imported by a plugin: the caller measures once and tells the worker.
"""

from __future__ import annotations

from edgecore.machine.facts import Machine, facts
from edgecore.machine.profiles import Figure, Profile, Source, Suited, Unit, match, profile, profiles
from edgecore.machine.threads import usable_threads

__all__ = [
    "Figure",
    "Machine",
    "Profile",
    "Source",
    "Suited",
    "Unit",
    "facts",
    "match",
    "profile",
    "profiles",
    "usable_threads",
]
