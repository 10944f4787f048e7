"""The reference backend. Nothing is imported here: the manifest beside this file says where the hooks are."""
