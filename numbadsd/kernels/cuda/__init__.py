"""CUDA kernels: the same stems, names and arguments as in `kernels.cpu`, over device arrays."""
