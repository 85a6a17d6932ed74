"""Commands: one click command a file."""
