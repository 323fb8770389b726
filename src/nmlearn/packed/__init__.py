"""Layers that multiply by packed weights. Importing this registers their operators: exported programs need no more."""

from nmlearn.packed import kernels as kernels
