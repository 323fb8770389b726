"""What ``nmlearn bench`` measures: packed kernels against both dense baselines, on this machine.

Every ratio is one of low deciles over interleaved calls in one run. Suites are in `SUITES`; each yields rows

    suite, case, pattern, dtype, eager_ms, best_ms, sparse_ms, kernel, spread, noise

where best is the faster of eager and oneDNN with a pre-packed weight (for a whole model: torch.compile with freezing);
noise says why the times are not to be trusted, and is empty if they are.
"""

from __future__ import annotations

from nmlearn.lab.bench.layers import check as check
from nmlearn.lab.bench.layers import convolutions, decode, linear
from nmlearn.lab.bench.summary import summary as summary
from nmlearn.lab.bench.whole import networks

SUITES = {"linear": linear, "decode": decode, "conv": convolutions, "model": networks}
PATTERNS = ("2:4", "4:8", "1:4", "2:8", "1:8", "2:16", "1:16")
