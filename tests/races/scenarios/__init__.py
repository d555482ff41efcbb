"""The races, step by step, by subject."""
