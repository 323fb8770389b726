"""The patterns that were allocated, and the table that shows why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from nmlearn.maths.pattern import Pattern
from nmlearn.model.plan import Rule


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
        patterns = [one.pattern for one in self.uniform]
        head = ("weight", "shape", "pattern", self.unit(), "loss", *map(str, patterns), "reason")
        lines = [head, *(self._cells(row, patterns) for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        left = (0, 1, 2, len(head) - 1)
        table = [
            "  ".join(
                c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        return "\n".join([*(line.rstrip() for line in table), self.summary(), *self.compared(), self.note()])

    def unit(self) -> str:
        """The heading of costs."""
        return "ms" if self.budget == "speedup" else self.budget

    def said(self, cost: float) -> str:
        """A cost of a row as text."""
        if self.budget == "speedup":
            return f"{cost:.3f}" if cost else ""
        return f"{100 * cost:.2f} %"

    def summary(self) -> str:
        """One sentence: what was asked for, and what it comes to."""
        sparse = sum(row.pattern is not None for row in self.rows)
        budget = f"{self._of(self.reached)} (asked for: {self._of(self.wanted)})"
        return f"{sparse} of {len(self.rows)} weights sparse, {budget}, sum of losses {self.loss:.4g}"

    def compared(self) -> list[str]:
        """A line for each pattern: what it alone comes to."""
        return [
            f"{one.pattern} wherever it fits: {self._of(one.reached)}, sum of losses {one.loss:.4g}"
            for one in self.uniform
        ]

    def note(self) -> str:
        """What the columns mean."""
        what = {
            "output": "squared error of the layer's outputs, relative to their squares",
            "model": "squared change of the model's outputs, relative to their squares",
            "magnitude": "share of the squared weights that is pruned",
        }[self.criterion]
        cost = "milliseconds with the choice" if self.budget == "speedup" else f"of the dense model's {self.budget}"
        after = ", and in brackets milliseconds" if self.budget == "speedup" else ""
        return f"{self.unit()}: {cost}; losses, with one weight pruned alone: {what}; by pattern: the loss{after}"

    def _of(self, value: float) -> str:
        if self.budget == "speedup":
            return f"{value:.2f} x as fast"
        return f"{100 * value:.1f} % of {self.budget}"

    def _cells(self, row: AllocationRow, patterns: list[Pattern]) -> tuple[str, ...]:
        shape, pattern = "x".join(map(str, row.shape)), str(row.pattern or "dense")
        loss = f"{row.loss:.3g}" if row.losses else ""
        return (
            row.name,
            shape,
            pattern,
            self.said(row.cost),
            loss,
            *(self._cell(row, p) for p in patterns),
            row.reason,
        )

    def _cell(self, row: AllocationRow, pattern: Pattern) -> str:
        if pattern not in row.losses:
            return ""
        return f"{row.losses[pattern]:.3g}" + (f" ({row.costs[pattern]:.3f})" if self.budget == "speedup" else "")
