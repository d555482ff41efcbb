"""Servers for tests: clusters, sentinels, databases, and what these need to start."""
