"""Programs that run in other processes."""
