"""Everything that a GPU has to tell about this package, in one command; `__main__.py` says how."""
