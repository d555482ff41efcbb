"""The consistency run: `python -m benchmarks.consistency`.

Processes of readers and writers over a real server and a real database, faults on the way, and every answer checked
against what had been committed when it was asked for. `rules` says what is wrong with an answer; it is pure.
"""
