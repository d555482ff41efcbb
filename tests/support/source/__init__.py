"""The project's own source, as its tests look at it."""
