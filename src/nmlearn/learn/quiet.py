"""When a removed weight stays 0.0 through an optimizer step by itself, so that nothing needs to be written.

With a zero gradient, zero moments and a zero weight, the elementwise optimizers of torch leave a weight at zero.
The gradient of a removed weight is cleared anyway. Once its moments are cleared too, clearing the weight after every
step is a pass over memory more than needed, as long as nobody else writes into weight or moments. Tensors count the
writes into them, and that is what is watched here. After any other optimizer the weight is cleared on every step.
"""

from __future__ import annotations

import weakref

from torch import Tensor, nn, optim

from nmlearn.maths import masks
from nmlearn.model.shards import local

_KEEP_ZEROS = (
    optim.SGD,
    optim.Adam,
    optim.AdamW,
    optim.NAdam,
    optim.RAdam,
    optim.Adamax,
    optim.Adagrad,
    optim.Adadelta,
    optim.RMSprop,
)
# The weights that timm's Lookahead writes back after the step now and then.
_SLOW = "lookahead_slow_buff"
# Writes through ``.data`` are not counted: whoever makes them sees zeros again after at most this many steps.
_TRUSTED_STEPS = 100


class Quiet:
    """Watches one weight for one optimizer."""

    def __init__(self, parameter: nn.Parameter, optimizer: optim.Optimizer) -> None:
        self.parameter, self.optimizer = parameter, optimizer
        self._watched = type(optimizer) in _KEEP_ZEROS and type(parameter) is nn.Parameter
        self._moments_clear = False
        self._gradient: list[_Mark] = []
        self._rest: list[_Mark] = []
        self._steps = 0

    def disturb(self) -> None:
        """The mask has changed: what is removed now may have a gradient and moments."""
        self._moments_clear = False
        self._gradient = []

    def gradient_cleared(self) -> None:
        """The gradient of what is removed is zero at this moment."""
        self._gradient = [_Mark(g)] if (g := self.parameter.grad) is not None else []

    def gradient_is_clear(self) -> bool:
        """Whether nobody has written into the gradient since, or put another one there."""
        return self.parameter.grad is None or _untouched(self._gradient, [self.parameter.grad])

    def before_step(self) -> None:
        """Look for writes into weight and moments since the last step."""
        self._moments_clear &= _untouched(self._rest, self._others())

    def needs_clearing(self) -> bool:
        """Whether the weight has to be cleared after this step."""
        self._steps += 1
        if self._steps % _TRUSTED_STEPS == 0:
            self._moments_clear = False
        return not self._moments_clear

    def after_step(self, keep_w: Tensor) -> None:
        """The weight is clear now; clear its moments too where that lasts."""
        if not self._watched:
            state = self.optimizer.state.get(self.parameter, {})
            if (slow := state.get(_SLOW)) is not None:
                masks.clear_(local(slow), keep_w)
            return
        if not self._moments_clear:
            for moment in self._moments():
                masks.clear_(moment, keep_w)
            self._moments_clear = True
        self._rest = [_Mark(tensor) for tensor in self._others()]

    def _moments(self) -> list[Tensor]:
        state = self.optimizer.state.get(self.parameter, {})
        return [t for t in state.values() if isinstance(t, Tensor) and t.shape == self.parameter.shape]

    def _others(self) -> list[Tensor]:
        return [self.parameter, *self._moments()]


class _Mark:
    """A tensor, where it lies, and how often it was written; by reference, since others may be made in its place."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.place, self.writes = weakref.ref(tensor), tensor.data_ptr(), tensor._version

    def holds(self, tensor: Tensor) -> bool:
        return self.tensor() is tensor and (self.place, self.writes) == (tensor.data_ptr(), tensor._version)


def _untouched(marks: list[_Mark], tensors: list[Tensor]) -> bool:
    same = len(marks) == len(tensors)
    return same and all(mark.holds(tensor) for mark, tensor in zip(marks, tensors, strict=True))
