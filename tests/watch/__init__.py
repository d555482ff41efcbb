"""Tests of the watcher: what each database reports of writes by any program, and what becomes of it in Redis."""
