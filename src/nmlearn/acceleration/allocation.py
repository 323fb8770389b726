"""The patterns that were allocated, and the table that shows why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from nmlearn.maths.pattern import Pattern
from nmlearn.model.plan import Rule

_LOSSES = {
    "output": "the squared error of its layer's outputs, relative to their squares",
    "model": "the squared change of the model's outputs, relative to their squares",
    "magnitude": "the share of its squares that is pruned",
}
_UNITS = {"parameters": "parameters", "bytes": "bytes", "flops": "multiply-adds"}
_TEXTS = 3  # columns of text before those of numbers


@dataclass(frozen=True)
class AllocationRow:
    """What was chosen for one weight, and what else there was.

    Attributes:
        name: of the weight.
        shape: of the weight.
        pattern: the choice; None for dense.
        costs: by pattern, None for dense, what each that there was to choose costs: a share of the dense model, or
            milliseconds. 0 milliseconds where no time was measured.
        losses: by pattern, what the model loses with this weight alone pruned; empty where there was no choice.
        reason: why there was no choice, or not all of it; what is to be said of its times.
    """

    name: str
    shape: tuple[int, ...]
    pattern: Pattern | None
    costs: Mapping[Pattern | None, float]
    losses: Mapping[Pattern, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def cost(self) -> float:
        """What the choice costs."""
        return self.costs[self.pattern]

    @property
    def loss(self) -> float:
        """What the choice loses."""
        return 0.0 if self.pattern is None else self.losses.get(self.pattern, 0.0)


@dataclass(frozen=True)
class Uniform:
    """One pattern for all weights that it fits: its share or speed-up, and its sum of losses."""

    pattern: Pattern
    reached: float
    loss: float


@dataclass(frozen=True, eq=False)
class Allocation(Mapping[str, Rule]):
    """Rules for a sparsifier, which :func:`nmlearn.acceleration.allocate.allocate` chose; ``print`` shows why.

        sparsifier = nm.Sparsifier(model, nm.LBC("2:4"), rules=allocation)

    Attributes:
        rules: those that were given, then the pattern of each weight that one was chosen for, None for dense.
        rows: of all weights of two or more dimensions.
        budget: "parameters", "bytes", "flops" or "speedup".
        wanted: the share of the dense model, or the speed-up, that was asked for.
        reached: what the rules come to.
        criterion: what the losses are of.
        loss: the sum of the losses.
        uniform: for comparison, what each pattern alone comes to.
        whole_ms: of a speed-up: the dense model's time.
    """

    rules: Mapping[str, Rule]
    rows: tuple[AllocationRow, ...]
    budget: str
    wanted: float
    reached: float
    criterion: str
    loss: float
    uniform: tuple[Uniform, ...]
    whole_ms: float | None = None

    def __getitem__(self, name: str) -> Rule:
        return self.rules[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    def __repr__(self) -> str:
        return f"Allocation({self.summary()})"

    def __str__(self) -> str:
        lines = self.table()
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        left = (*range(_TEXTS), len(widths) - 1)
        table = (
            [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
            for line in lines
        )
        return "\n".join([*("  ".join(cells).rstrip() for cells in table), *self.notes()])

    def table(self) -> list[tuple[str, ...]]:
        """The table as text: its head, and a line for each weight."""
        patterns: list[Pattern | None] = [one.pattern for one in self.uniform]
        if self.timed:
            patterns.insert(0, None)
        names = [str(pattern or "dense") for pattern in patterns]
        head = ("weight", "shape", "pattern", "ms" if self.timed else self.budget, "loss", *names, "reason")
        return [head, *(self._line(row, patterns) for row in self.rows)]

    def notes(self) -> list[str]:
        """What the choices come to, what each pattern alone would, and what the columns mean."""
        what = f"loss: of one weight pruned alone, {_LOSSES[self.criterion]}"
        cost = "ms: with the choice" if self.timed else f"{self.budget}: with the choice, of the dense model's"
        columns = "the loss, and milliseconds in brackets" if self.timed else "the loss"
        compared = [
            f"{one.pattern} wherever it fits: {self._of(one.reached)}, sum of losses {one.loss:.4g}"
            for one in self.uniform
        ]
        return [self.summary(), *compared, f"{what}; {cost}; by pattern: {columns}"]

    def summary(self) -> str:
        """One sentence: what was asked for, and what it comes to."""
        sparse = sum(row.pattern is not None for row in self.rows)
        dense = f", of {self.whole_ms:.3g} ms dense" if self.whole_ms is not None else ""
        budget = f"{self._of(self.reached)} (asked for: {self._of(self.wanted)}{dense})"
        return f"{sparse} of {len(self.rows)} weights sparse, {budget}, sum of losses {self.loss:.4g}"

    @property
    def timed(self) -> bool:
        """Whether the costs are times."""
        return self.budget == "speedup"

    def _of(self, value: float) -> str:
        return f"{value:.2f} x as fast" if self.timed else f"{100 * value:.1f} % of {_UNITS[self.budget]}"

    def _line(self, row: AllocationRow, patterns: list[Pattern | None]) -> tuple[str, ...]:
        shape, pattern = "x".join(map(str, row.shape)), str(row.pattern or "dense")
        loss = f"{row.loss:.3g}" if row.losses else ""
        cells = (self._cell(row, each) for each in patterns)
        return (row.name, shape, pattern, self._cost(row.cost), loss, *cells, row.reason)

    def _cell(self, row: AllocationRow, pattern: Pattern | None) -> str:
        if not row.losses or pattern not in row.costs:
            return ""
        time = self._cost(row.costs[pattern])
        return time if pattern is None else f"{row.losses[pattern]:.3g}{f' ({time})' * self.timed}"

    def _cost(self, cost: float) -> str:
        if not self.timed:
            return f"{100 * cost:.2f} %"
        return f"{cost:.3f}" if cost else ""
