"""Artifacts on disk: content-addressed, whole or not there, sealed, with their evidence beside them.

store = Store()
with store.build(identity) as staging:
    if staging.cached:
        return staging.cached
    ...                                  # write the payload under staging.path
    return staging.publish(artifact)
"""

from edgecore.paths import home
from edgecore.store.identity import request_id
from edgecore.store.native import native_artifact
from edgecore.store.store import Staging, Store

__all__ = ["Staging", "Store", "home", "native_artifact", "request_id"]
