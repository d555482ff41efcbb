"""Tests of `fastrdb.invalidation`."""
