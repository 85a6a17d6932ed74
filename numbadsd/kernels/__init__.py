"""Kernels: arrays in, arrays out; no state, no allocation policy."""
