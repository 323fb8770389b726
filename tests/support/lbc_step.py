"""The step of LBC by the kernels, compared with that of PyTorch."""

import itertools
import os
from unittest import mock

import torch

from nmlearn.learn.fused_adamw import FusedAdamW
from nmlearn.learn.weight import SparseWeight
from nmlearn.maths import masks, scores
from nmlearn.native import library as native
from nmlearn.native import training

SETTINGS = [dict(lr=0.0123, momentum=m, weight_decay=wd) for m, wd in itertools.product((0.9, 0.0), (1e-4, 0.0))]
SHAPES = [(), (0, 4), (1,), (7, 4), (63,), (64,), (65,), (5, 16, 3, 3), (4, 16, 1, 1), (2, 8, 3, 3, 3), (301, 1024)]
SPECIAL = (0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-40, 3e38)


def plain(shape, dtype):
    return torch.empty(shape, dtype=dtype)


def channels_last(shape, dtype):
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return torch.empty(shape, dtype=dtype).to(memory_format=formats.get(len(shape), torch.contiguous_format))


def turned(shape, dtype):
    """The memory order of dimensions reversed."""
    return torch.empty(shape[::-1], dtype=dtype).permute([*reversed(range(len(shape)))])


def holes(shape, dtype):
    return torch.empty((*shape, 2), dtype=dtype)[..., 0]


LAYOUTS = {"plain": plain, "channels_last": channels_last, "turned": turned, "holes": holes}


def random(layout, shape, dtype):
    x = torch.randn(shape)
    if x.numel() > 100:
        x.view(-1)[torch.randperm(x.numel())[: 4 * len(SPECIAL)]] = torch.tensor(SPECIAL * 4)
    return LAYOUTS[layout](shape, dtype).copy_(x)


def case(layout, dtype):
    """Scores, momenta, gradients and weights of all shapes."""
    return [[random(layout, shape, d) for shape in SHAPES] for d in (torch.float32, torch.float32, dtype, dtype)]


def check_step(layout, dtype, settings, steps=3):
    s, v, g, w = case(layout, dtype)
    s_torch, v_torch = [x.clone() for x in s], [x.clone() for x in v]
    untouched = [x.clone() for x in (*g, *w)]
    for _ in range(steps):
        scores.sgd_(s, v, g, w, **settings)
        without_kernels(lambda: scores.sgd_(s_torch, v_torch, g, w, **settings))
    for ours, theirs in zip((*s, *v), (*s_torch, *v_torch), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(ours.signbit() & ~ours.isnan(), theirs.signbit() & ~theirs.isnan())
    for x, before in zip((*g, *w), untouched, strict=True):
        torch.testing.assert_close(x, before, rtol=0, atol=0, equal_nan=True)


def check_weights(layout, settings, steps=3):
    """Weights without scores: torch's SGD on their gradients, then cleared by a mask, as two passes do it."""
    _, v, g, w = case(layout, torch.float32)
    keeps = [LAYOUTS[layout](x.shape, torch.int8).copy_(masks.bits(torch.rand(x.shape) < 0.5)) for x in w]
    twins, moments = [torch.nn.Parameter(x.clone()) for x in w], [x.clone() for x in v]
    sgd = torch.optim.SGD(twins, foreach=True, **settings)
    for twin, grad, moment in zip(twins, g, moments, strict=True):
        twin.grad, sgd.state[twin] = grad.clone(), {"momentum_buffer": moment}
    own = training.WeightStep(v, [*keeps[:-1], None], settings["momentum"], settings["weight_decay"])
    for _ in range(steps):
        stepped = training.weight_step_(g, w, own, lr=settings["lr"])
        sgd.step()
        for twin, keep in list(zip(twins, keeps, strict=True))[:-1]:
            without_kernels(lambda twin=twin, keep=keep: masks.clear_(twin.detach(), keep))
        assert layout == "holes" or stepped == list(range(len(w)))
    for i in stepped:
        for ours, theirs in ((w[i], twins[i].detach()), (v[i], moments[i])):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(ours.signbit() & ~ours.isnan(), theirs.signbit() & ~theirs.isnan())


ADAMW = [
    dict(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.99)),
    dict(lr=0.0123, weight_decay=0.0, betas=(0.6, 0.999), eps=1e-5),
]


def check_adamw(layout, settings, steps=3):
    """Weights with scores: their scores, torch's AdamW on the weights, then cleared by a mask: three passes in one."""
    s, v, g, w = case(layout, torch.float32)
    keeps = [LAYOUTS[layout](x.shape, torch.int8).copy_(masks.bits(torch.rand(x.shape) < 0.5)) for x in w]
    keeps[-1] = None
    of_scores = dict(lr=settings["lr"], momentum=0.9, weight_decay=1e-4)
    models = [[torch.nn.Parameter(x.clone()) for x in w] for _ in range(2)]
    optimizers = [torch.optim.AdamW(model, foreach=False, **settings) for model in models]
    twins = [[x.clone() for x in s], [x.clone() for x in v]]
    for step in range(steps):
        for model in models:
            for p, grad in zip(model, g, strict=True):
                p.grad = grad / (step + 1)
        grads = [p.grad for p in models[0]]
        ours, theirs = ([p.detach() for p in model] for model in models)
        ahead = FusedAdamW(optimizers[0], print, print)
        held = [
            SparseWeight("", p, None, {masks.KEEP: k}, density=1.0 if k is None else 0.5)
            for p, k in zip(models[0], keeps, strict=True)
        ]
        own = ahead._step(optimizers[0].param_groups[0], held)
        left, stepped = training.score_and_weight_step_(s, v, grads, ours, own, **of_scores)
        scores.sgd_(*([x[i] for i in left] for x in (s, v, grads, ours)), **of_scores)
        assert layout == "holes" or stepped == (list(range(len(w))) if step else [])
        ahead._count([held[i] for i in stepped])
        without_kernels(lambda g=grads, w=theirs: scores.sgd_(*twins, g, w, **of_scores))
        for i in stepped:
            models[0][i].grad = None
        for optimizer in optimizers:
            optimizer.step()
        for model in models:
            for p, keep in list(zip(model, keeps, strict=True))[:-1]:
                without_kernels(lambda p=p, keep=keep: masks.clear_(p.detach(), keep))
        for p, twin in zip(*models, strict=True):
            one, other = optimizers[0].state[p], optimizers[1].state[twin]
            assert one["step"] == other["step"] == step + 1
            for a, b in ((p.detach(), twin.detach()), *((one[k], other[k]) for k in ("exp_avg", "exp_avg_sq"))):
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
                assert torch.equal(a.signbit() & ~a.isnan(), b.signbit() & ~b.isnan())
    for a, b in zip((*s, *v), (*twins[0], *twins[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def without_kernels(call):
    with mock.patch.object(training, "_library", lambda: None):
        return call()


def rounds_alike():
    """Whether torch and the kernels both have, or both lack, instructions that multiply and add with one rounding."""
    return (native.isa() in ("avx512", "avx2")) == (torch.backends.cpu.get_cpu_capability() != "DEFAULT")


def check_all(isa: str, torchs: str) -> str | None:
    """In a fresh process: everything with one instruction set of the kernels, and one of torch. Which it was."""
    os.environ |= {"NMLEARN_ISA": isa, "ATEN_CPU_CAPABILITY": torchs}
    torch.manual_seed(0)
    if native.library() is not None:
        assert torch.backends.cpu.get_cpu_capability() == torchs.upper() and rounds_alike()
        for layout, dtype, settings in itertools.product(LAYOUTS, (torch.float32, torch.bfloat16), SETTINGS):
            check_step(layout, dtype, settings)
        for layout, settings in itertools.product(LAYOUTS, SETTINGS[:2]):
            check_weights(layout, settings)
        for layout, settings in itertools.product(LAYOUTS, ADAMW):
            check_adamw(layout, settings)
    return native.isa()
