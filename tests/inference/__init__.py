"""Tests of `fastrdb.inference`."""
