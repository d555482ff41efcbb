"""Measurements: `python -m benchmarks [--quick]` prints one table. One file per question."""
