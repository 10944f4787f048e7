"""What this computer is, what this process may use of it, and which profile describes it.

Nothing here is imported by a plugin; what both need to know of the machine stands in `edgecore.contract.resources`.
"""

from __future__ import annotations

from edgecore.contract.resources import usable_threads
from edgecore.machine.facts import Machine, facts
from edgecore.machine.profiles import Figure, Profile, Source, Suited, Unit, match, profile, profiles

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
