"""Benchmarks: what is measured, the record of it, and the report one reads."""
