"""Measurements against the peers: `python -m benchmarks [--quick]` prints one table and draws plots.

One file per question; what they share: `harness` times, `contestants` are who takes part, `catalogue` is what they
read, `comparison` puts these together, `rows` is one line of the answer, `report` and `plots` show it. Only the public
interface of fastrdb is used.
"""
