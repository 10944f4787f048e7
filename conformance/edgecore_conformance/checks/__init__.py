"""One file a group; every check is registered when its file is imported."""
