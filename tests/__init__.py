"""Tests of fastrdb: a file per module with the module's name, plus the races, databases, typing and the README."""
