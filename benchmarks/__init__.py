"""Benchmarks and the compile gate; see `report.py` and `aot.py`."""
