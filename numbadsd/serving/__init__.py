"""Serving: which requests take part in a step, what they may hold, and how long they waited."""
