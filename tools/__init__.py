"""Gates: programs that pass or fail, run as `python -m tools.NAME`."""
