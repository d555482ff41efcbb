"""The contestants: this library, the same work by hand, and the peers."""
