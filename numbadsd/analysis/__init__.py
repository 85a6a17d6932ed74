"""What the measurements mean: quality, ceilings and crossovers."""
