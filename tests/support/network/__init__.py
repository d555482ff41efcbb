"""The way to a server: recorded, slowed down, or made in memory; and the clocks that measure waits."""
