"""A pattern N:M: at most N weights are kept in every M consecutive ones."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from nmlearn.errors import PatternError, shown

LARGEST_M = 64
_SPELLING = re.compile(r"\s*(\d{1,9})\s*:\s*(\d{1,9})\s*")  # Python reads no number of more than 4,300 digits


@dataclass(frozen=True, init=False)
class Pattern:
    """N:M, N *kept* of M. ``Pattern("2:4")`` or ``Pattern(2, 4)``; a Pattern is passed through.

    Wanda, SparseGPT and llm-compressor count the pruned instead: their 3:4 is ``Pattern("1:4")``.

    Attributes:
        n: how many weights of a group are kept, 1 <= n <= m.
        m: the size of a group, at most 64.

    Raises:
        PatternError: the text is not of the form N:M, or not 1 <= N <= M <= 64.
    """

    n: int
    m: int

    def __init__(self, pattern: str | int | Pattern, m: int | None = None) -> None:
        n, m = _read(pattern, m)
        if not 1 <= n <= m <= LARGEST_M:
            raise PatternError(
                where="pattern",
                given=f"{shown(n)}:{shown(m)}",
                wrong=f"N:M needs 1 <= N <= M <= {LARGEST_M}, N being the number of weights kept",
                fix='write for instance "2:4"',
            )
        object.__setattr__(self, "n", n)
        object.__setattr__(self, "m", m)

    @property
    def density(self) -> float:
        """The share of weights kept, N / M."""
        return self.n / self.m

    @property
    def combinations(self) -> int:
        """C(M, N): how many keep-sets a group chooses from."""
        return math.comb(self.m, self.n)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def __repr__(self) -> str:
        return f"Pattern('{self}')"


def _read(pattern: str | int | Pattern, m: int | None) -> tuple[int, int]:
    if isinstance(pattern, Pattern) and m is None:
        return pattern.n, pattern.m
    if type(pattern) is int and type(m) is int:
        return pattern, m
    if isinstance(pattern, str) and m is None:
        match = _SPELLING.fullmatch(pattern)
        if match:
            return int(match[1]), int(match[2])
    # YAML 1.1 reads an unquoted 2:4 as the base-60 number 124.
    fix = "quote the pattern" if isinstance(pattern, int) else 'write N:M, for instance "2:4"'
    raise PatternError(where="pattern", given=shown(pattern), wrong="this is not a pattern N:M", fix=fix)
