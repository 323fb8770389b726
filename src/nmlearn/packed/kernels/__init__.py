"""The packed operators: one schema each, many kernels.

``torch.ops.nmlearn.packed`` computes ``activation(W x + bias + residual)`` with a packed W, a linear layer's or a 2-D
convolution's. On a CPU the compiled kernels run if the library is built and supports the dtype; everything else runs on
the reference kernel, which unpacks the weight. It is functional, has a fake (torch.compile, torch.export), and follows
torch.autocast like torch's own layers. Forward- and reverse-mode derivatives are refused: packed weights are for
inference.

    x         images [batch, channels, height, width], or tokens [..., channels]; float32 or bfloat16 in kernels
    values    the layout's values, in x's dtype, or int8 with `scale`
    index     the layout's index
    scale     float32 [groups * rows], for int8 values: a row's weights are values * scale; else None
    bias      [groups * rows] in x's dtype, or None
    residual  of the output's shape and dtype, or None
    n, m      the pattern
    rows      outputs of all convolution groups together
    images    whether x is images; if not, the layer is linear: a 1x1 convolution of tokens, in one group
    kernel_h, kernel_w and stride, padding, dilation likewise: in pixels, vertical and horizontal
    layout    "rows", "tokens" or "bytes" (kernels/layouts.py); activation "none", "relu", "gelu" (exact) or "silu"

A convolution returns channels-last images for "rows" and "bytes", and for "tokens" the memory format of x.

The layout "bytes" is not exact: every call rounds each token (each pixel of a 1x1 convolution) to 7 bits, between its
least and its largest value, and multiplies exactly by int8 values; `scale` is [2, rows], with the sums of the rows'
values. A token with an infinite or NaN value gives NaN in all rows.

In the other layouts, a kernel multiplies by the kept weights and, in groups that keep fewer than N, by some of the
zeros. So an infinite or NaN input affects every row that keeps it as in a dense layer. A row with N other non-zeros in
that group is unaffected, where a dense layer (and the reference kernel) computes 0 * inf = NaN.

The index is trusted: a wrong one gives wrong numbers (but reads nothing outside the operands). PackedLinear and
PackedConv2d check it when a state dict is loaded.

``decode_linear`` and ``semi_structured_linear``, for GPUs, have layouts of their own: kernels/gpu_operators.py.
"""

from __future__ import annotations

from nmlearn.packed.kernels.checks import ACTIVATIONS as ACTIVATIONS
from nmlearn.packed.kernels.checks import LINEAR as LINEAR
from nmlearn.packed.kernels.gpu_operators import decode_linear as decode_linear
from nmlearn.packed.kernels.gpu_operators import semi_structured_linear as semi_structured_linear
from nmlearn.packed.kernels.operators import packed as packed
