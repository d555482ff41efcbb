"""Servers of the tests' own: clusters, sentinels, databases, and what they need to start."""
