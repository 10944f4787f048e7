"""`edgecore` with the small suite in the place of the real one: what a test starts as a process of its own."""

from __future__ import annotations

import sys

from edgecore.cli import main

from support.small_suite import GOOD, Shaky, Wrong, small_suite

if __name__ == "__main__":
    more = {"wrong": Wrong, "shaky": Shaky}
    added = [more[name] for name in sys.argv[1].split(",") if name]
    with small_suite(*GOOD, *added):
        main(sys.argv[2:])
