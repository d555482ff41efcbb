"""The things that tests act on: databases with rows, caches as processes have them, and gates between them."""
