"""The protocol as a model, of which every interleaving is tried."""
