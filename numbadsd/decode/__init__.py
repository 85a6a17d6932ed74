"""Decode paths: one step of attention for a batch, by name."""
