"""`python -m edgecore`, for environments whose scripts are not on the path."""

from edgecore.cli import main

main()
