"""The questions: one module for each, whose `rows` measures and returns lines of the table."""
