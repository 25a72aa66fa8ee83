"""What is measured: `cpu.py`, `step_cost.py`, `gpu` and others are commands, `test_*.py` run in pytest."""
