"""Layers that multiply by packed weights. Importing this registers their operators, all that exported programs need."""

from nmlearn.packed import kernels as kernels
