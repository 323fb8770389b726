"""The end of learning: the weights that the model has by then, and what to say of those that break their pattern."""

from __future__ import annotations

from torch import Tensor, nn

from nmlearn.errors import ViolationError
from nmlearn.learn.refusals import parameters, replaced
from nmlearn.model.plan import Plan
from nmlearn.model.shards import is_sharded, local

_REPLACED = "was replaced after the sparsifier was made"
_FIRST = "first load or change the model, then make the optimizer and the sparsifier, and attach"


def weights_now(plan: Plan, model: nn.Module) -> dict[str, Tensor]:
    """The sparse weights (their local shards) that the model has now, by qualified name.

    Raises:
        ViolationError: it has no weight of a name any more, or one of another shape.
    """
    named, found = parameters(model), {}
    for row in plan.sparse:
        # A sharded weight goes by another parameter while its layer is gathered.
        now = row.parameter if is_sharded(row.parameter) else named.get(row.name)
        if now is None or now.shape != row.parameter.shape:
            given = "a model without it" if now is None else f"a weight of shape {tuple(now.shape)}"
            wrong = f"the weight of shape {tuple(row.parameter.shape)} that was learned {_REPLACED}"
            raise ViolationError(where=row.name, given=given, wrong=wrong, fix=_FIRST)
        found[row.name] = local(now)
    return found


def advice(plan: Plan, model: nn.Module) -> str:
    """What to do where the model breaks a pattern."""
    names = [row.name for row in replaced(plan, model) if not is_sharded(row.parameter)]
    if names:
        return f"the model has another parameter than at attach in {len(names)} places, such as {names[0]}: {_FIRST}"
    return "finalize after the schedule has ended, and let nothing but the optimizer write into these weights"
