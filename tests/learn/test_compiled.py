"""Compiled models, compiled optimizer steps, compiled autograd, and CUDA graphs: what docs/scale.md says of each."""

from __future__ import annotations

import contextlib
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

import nmlearn as nm
from nets import batches, convnet, sgd, train
from nmlearn.errors import AttachError
from nmlearn.learn import refusals

STEPS = 16
METHODS = {"lbc": nm.LBC("2:4"), "srste": nm.SRSTE("2:4")}
needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
# torch's compiled autograd looks at the gradients of whatever it traces.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def adamw(model):
    return torch.optim.AdamW(model.parameters(), 1e-3, foreach=True)


def attached(method, optimizer=sgd, model=None):
    torch._dynamo.reset()
    counters.clear()
    model = model or convnet()
    chosen = optimizer(model)
    return model, chosen, nm.Sparsifier(model, METHODS[method]).attach(chosen, STEPS)


def loop(model, optimizer, step, backward=contextlib.nullcontext):
    for x, y in batches(STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        with backward():
            loss.backward()
        step()


def equal(model, other, tolerance=0.0):
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", [sgd, adamw])
def test_a_compiled_optimizer_step(method, optimizer):
    """The hooks run, once a step, and outside of what is compiled: the schedule recompiles nothing but SGD's own step,
    which has other parameters to step while scores are learned."""
    expected, chosen, _ = attached(method, optimizer)
    train(expected, chosen, batches(STEPS))
    model, chosen, sparsifier = attached(method, optimizer)
    loop(model, chosen, torch.compile(chosen.step, backend="eager"))
    assert sparsifier.step == STEPS
    equal(model, expected, 0.0 if optimizer is sgd else 1e-4)
    assert 0 < counters["frames"]["total"] <= 8
    sparsifier.finalize()


@pytest.mark.parametrize("method", METHODS)
def test_compiled_autograd(method):
    """Backward compiled as a whole; the clearing of gradients breaks its graph, and nothing more."""
    expected, optimizer, _ = attached(method)
    train(expected, optimizer, batches(STEPS))
    model, optimizer, sparsifier = attached(method)
    compiler = torch.compile(backend="eager")
    loop(model, optimizer, optimizer.step, lambda: torch._dynamo.compiled_autograd._enable(compiler))
    assert counters["compiled_autograd"]["captures"] > 0 and counters["frames"]["total"] <= 16
    equal(model, expected)
    sparsifier.finalize()


def test_an_optimizer_in_backward_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's import of its own deprecated compiler
        from torch.distributed.optim import _apply_optimizer_in_backward
    model = convnet()
    _apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1})
    for optimizer in (sgd(model), model.conv.weight._in_backward_optimizers[0]):
        with pytest.raises(
            AttachError, match=r"conv.weight: given SGD: an optimizer steps this weight inside backward"
        ):
            nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, STEPS)


def test_a_state_that_an_optimizer_makes_itself_is_no_step():
    """What torch.distributed.checkpoint.state_dict does to an optimizer without state; nothing else passes for it."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    for method in METHODS:
        model, optimizer, sparsifier = attached(method, adamw)
        get_optimizer_state_dict(model, optimizer)
        assert sparsifier.step == 0 and optimizer.state
        model, optimizer, sparsifier = attached(method, adamw)
        optimizer.param_groups[0]["lr"] = 0.0  # a warm-up's first step
        x, y = batches(1)[0]
        F.cross_entropy(model(x), y).backward()
        optimizer.step(closure=None)
        assert sparsifier.step == 1


def test_a_captured_step_is_refused(monkeypatch):
    """The part of it that needs no GPU."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    refusals.check_capture(SimpleNamespace(is_cuda=False))
    with pytest.raises(AttachError, match="capture forward and backward only"):
        refusals.check_capture(SimpleNamespace(is_cuda=True))


class TestOnAGPU:
    pytestmark = needs_gpu

    def test_a_captured_step_is_refused(self):
        model, optimizer, _ = attached(
            "lbc", lambda m: torch.optim.Adam(m.parameters(), capturable=True), convnet().cuda()
        )
        x, y = (t.cuda() for t in batches(1)[0])
        F.cross_entropy(model(x), y).backward()
        with (
            pytest.raises(AttachError, match="capture forward and backward only"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            optimizer.step()

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("options", [{"capturable": True}, {"fused": True}, {"foreach": True}], ids=str)
    def test_forward_and_backward_in_a_graph(self, method, options):
        """Replayed, with the optimizer behind it: as without a graph, from the same gradients, mask by mask."""
        found = []
        for captured in (False, True):
            model = convnet().cuda().eval()
            model, optimizer, sparsifier = attached(
                method, lambda m: torch.optim.Adam(m.parameters(), 1e-3, **options), model
            )
            x, y = (t.cuda() for t in batches(1)[0])
            replay = (self.captured if captured else self.eager)(model, x, y)
            for new_x, new_y in batches(STEPS):
                x.copy_(new_x)
                y.copy_(new_y)
                if not captured:
                    optimizer.zero_grad()
                replay()
                optimizer.step()
            sparsifier.finalize()
            found.append(model)
        equal(*found, tolerance=1e-5)

    @staticmethod
    def eager(model, x, y):
        return lambda: F.cross_entropy(model(x), y).backward()

    @staticmethod
    def captured(model, x, y):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                model.zero_grad(set_to_none=True)
                F.cross_entropy(model(x), y).backward()
        torch.cuda.current_stream().wait_stream(side)
        model.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            F.cross_entropy(model(x), y).backward()
        return graph.replay
