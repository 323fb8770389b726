"""A packed layer called as before skips the dispatcher, unless somebody listens; the results are the same."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

import operands
from nmlearn.errors import KernelError
from nmlearn.native import library as native
from nmlearn.packed.kernels import operators

pytestmark = pytest.mark.skipif(not native.isa(), reason="the CPU kernels are not built")
MAKERS = {
    "linear": lambda: operands.linear("2:4", "rows", activation="relu"),
    "linear int8": lambda: operands.linear("1:4", "rows", int8=True),
    "conv": lambda: operands.conv("2:4", "rows", padding=(1, 1)),
    "conv tokens": lambda: operands.conv("1:4", "tokens"),
}


class Seen(TorchDispatchMode):
    """Counts nmlearn's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += operator.namespace == "nmlearn"
        return operator(*args, **kwargs or {})


@pytest.fixture(params=MAKERS)
def call(request: pytest.FixtureRequest) -> operands.Call:
    made = MAKERS[request.param]()
    made.layer.eval()
    with torch.inference_mode():
        made.layer(made.x, made.residual)
    return made


def without_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "operator", None)


@pytest.mark.parametrize("inference", [True, False])
def test_the_second_call_needs_no_operator(
    call: operands.Call, inference: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_operators(monkeypatch)
    with torch.inference_mode(inference):
        y = call.layer(call.x, call.residual)
    monkeypatch.undo()
    assert torch.equal(y, call.packed())


def test_other_inputs_are_another_call(call: operands.Call, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.cat([call.x, call.x])
    residual = None if call.residual is None else torch.cat([call.residual, call.residual])
    assert torch.equal(call.layer(x, residual)[: len(call.x)], call.layer(call.x, call.residual))
    without_operators(monkeypatch)
    for other in (call.x.double(), call.x.mT, call.x[:0]):
        with pytest.raises((TypeError, KernelError)):
            call.layer(other, residual)


def test_other_weights_are_another_call(call: operands.Call) -> None:
    weights = [-call.layer.values, call.layer.values * 0]
    for values in weights:
        call.layer.values = values
        twin = copy.deepcopy(call.layer)
        assert torch.equal(call.layer(call.x, call.residual), twin(call.x, call.residual))
        call.layer.values.neg_()  # in place, as load_state_dict does it
        twin = pickle.loads(pickle.dumps(call.layer))
        assert torch.equal(call.layer(call.x, call.residual), twin(call.x, call.residual))
    call.layer.to(torch.bfloat16)
    x, residual = (None if t is None else t.bfloat16() for t in (call.x, call.residual))
    assert call.layer(x, residual).dtype == torch.bfloat16


def test_modes_see_the_operator(call: operands.Call) -> None:
    with Seen() as seen:
        call.layer(call.x, call.residual)
    assert seen.count == 1
    nodes = make_fx(lambda x: call.layer(x, call.residual))(call.x).graph.nodes
    assert any("nmlearn" in str(node.target) for node in nodes)
    with profile() as profiled:
        call.layer(call.x, call.residual)
    assert any("nmlearn" in event.key for event in profiled.key_averages())


def test_views_that_are_still_to_be_negated(call: operands.Call) -> None:
    plain = call.layer(-call.x, call.residual)
    call.layer(call.x, call.residual)
    assert torch.equal(call.layer(torch._neg_view(call.x), call.residual), plain)


def test_symbolic_sizes(call: operands.Call) -> None:
    graph = make_fx(lambda x: call.layer(x, call.residual), tracing_mode="symbolic", _allow_non_fake_inputs=True)(
        call.x
    )
    assert torch.equal(graph(call.x), call.layer(call.x, call.residual))


def test_a_trace_sees_the_operator(call: operands.Call) -> None:
    def layer(x: Tensor) -> Tensor:
        y: Tensor = call.layer(x, call.residual)
        return y

    with warnings.catch_warnings():  # that torch.jit is deprecated, and that sizes become constants
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(layer, call.x)
    assert torch.equal(traced(2 * call.x), layer(2 * call.x))


def test_a_gradient_is_refused_in_the_second_call_too(call: operands.Call) -> None:
    with pytest.raises(KernelError, match="requires a gradient"):
        call.layer(call.x.requires_grad_(), call.residual)
