"""Sweeps: tables of points, each measured by a process of its own, and their results folder."""
