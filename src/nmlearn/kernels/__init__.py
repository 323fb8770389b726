"""Kernels: one file per backend, each an implementation of the linear layer or convolution of a packed weight."""
