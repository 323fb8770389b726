"""The packed operators: one schema each, many kernels.

``torch.ops.nmlearn.packed_linear`` and ``packed_conv2d`` compute ``activation(W x + bias + residual)`` with a packed W.
On a CPU the compiled kernels run where the library is built and takes the dtype; everything else runs by the reference
kernel, which unpacks the weight. Both are functional, have fake implementations (torch.compile, torch.export) and no
gradient: packed weights are for inference.

    x         [..., channels] for linear, [batch, channels, height, width] for conv2d; float32 or bfloat16 in kernels
    values    the layout's values, in x's dtype, or int8 with `scale`
    index     the layout's index
    scale     float32 [groups * rows], for int8 values: a row's weights are values * scale; else None
    bias      [groups * rows] in x's dtype, or None
    residual  of the output's shape and dtype, or None
    layout    "rows" or "tokens" (kernels/layouts.py); activation "none", "relu", "gelu" (the exact one) or "silu"

conv2d returns channels-last images for "rows", and for "tokens" the memory format of x.

A kernel multiplies by the kept weights and, in groups that have fewer than N, by some of the zeros. So an infinite or
NaN input does to every row that keeps it what it does in a dense layer, but a row with N other non-zeros in that group
stays as it is, where a dense layer (and the reference kernel) computes 0 * inf = NaN.

The index is trusted: one that is not its weight's gives wrong numbers (but reads nothing outside the operands).
PackedLinear and PackedConv2d look at it when a state is loaded.

``decode_linear`` and ``semi_structured_linear``, for GPUs, have layouts of their own: kernels/gpu_operators.py.
"""

from __future__ import annotations

from nmlearn.packed.kernels.gpu_operators import decode_linear as decode_linear
from nmlearn.packed.kernels.gpu_operators import semi_structured_linear as semi_structured_linear
from nmlearn.packed.kernels.operators import ACTIVATIONS as ACTIVATIONS
from nmlearn.packed.kernels.operators import known as known
from nmlearn.packed.kernels.operators import packed_conv2d as packed_conv2d
from nmlearn.packed.kernels.operators import packed_linear as packed_linear
