"""Figures: `python -m benchmarks.NAME` measures one."""
