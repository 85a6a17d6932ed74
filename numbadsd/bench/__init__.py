"""Measuring: what a command runs, records and reports."""
