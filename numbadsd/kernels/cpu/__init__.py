"""CPU kernels: Numba, parallel over tasks, explicit vectors inside a task."""
