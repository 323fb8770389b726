"""When a removed weight stays 0.0 through an optimizer step by itself, so that nothing needs to be written.

With a zero gradient, zero moments and a zero weight, the elementwise optimizers of torch leave a weight at zero.
The gradient of a removed weight is cleared anyway. Once its moments are cleared too, clearing the weight after every
step is a pass over memory more than needed, as long as nobody else writes into weight, gradient or moments. Tensors
count the writes into them, and that is what is watched here. Any other optimizer, and every step with a touched
gradient (clipping, unscaling), is cleared after as before.
"""

from __future__ import annotations

from torch import Tensor, nn, optim

from nmlearn import masks

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
# Writes through ``.data`` are not counted: whoever makes them sees zeros again after at most this many steps.
_TRUSTED_STEPS = 100
_Marks = tuple[tuple[int, int], ...]


class Quiet:
    """Watches one weight for one optimizer."""

    def __init__(self, parameter: nn.Parameter, optimizer: optim.Optimizer) -> None:
        self.parameter, self.optimizer = parameter, optimizer
        self._watched = type(optimizer) in _KEEP_ZEROS and type(parameter) is nn.Parameter
        self._moments_clear = False
        self._gradient: _Marks = ()
        self._rest: _Marks = ()
        self._gradient_clear = False
        self._steps = 0

    def disturb(self) -> None:
        """The mask has changed: what is removed now may have moments."""
        self._moments_clear = False

    def gradient_cleared(self) -> None:
        """The gradient of what is removed is zero at this moment."""
        self._gradient = _marks(self.parameter.grad)

    def before_step(self) -> None:
        """Look for writes since the last step, and since the gradient was cleared."""
        self._gradient_clear = self._watched and _marks(self.parameter.grad) in ((), self._gradient)
        self._moments_clear &= self._gradient_clear and self._rest == self._others()

    def needs_clearing(self) -> bool:
        """Whether the weight has to be cleared after this step."""
        self._steps += 1
        if self._steps % _TRUSTED_STEPS == 0:
            self._moments_clear = False
        return not self._moments_clear

    def after_step(self, keep_w: Tensor) -> None:
        """The weight is clear now; clear its moments too where that lasts."""
        if not self._gradient_clear:
            return
        if not self._moments_clear:
            for moment in self._moments():
                masks.clear_(moment, keep_w)
            self._moments_clear = True
        self._rest = self._others()

    def _moments(self) -> list[Tensor]:
        state = self.optimizer.state.get(self.parameter, {})
        return [t for t in state.values() if isinstance(t, Tensor) and t.shape == self.parameter.shape]

    def _others(self) -> _Marks:
        return _marks(self.parameter, *self._moments())


def _marks(*tensors: Tensor | None) -> _Marks:
    """Where each tensor lies and how often it was written."""
    return tuple((t.data_ptr(), t._version) for t in tensors if t is not None)
