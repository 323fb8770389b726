"""The compiled training step of LBC gives the bits of the PyTorch path, on every instruction set and memory layout."""

import pytest
import torch

import nmlearn as nm
from lbc_step import (
    ADAMW,
    LAYOUTS,
    SETTINGS,
    SHAPES,
    case,
    check_adamw,
    check_all,
    check_step,
    check_weights,
    random,
    rounds_alike,
    without_kernels,
)
from nets import batches, convnet, sgd, train
from nmlearn.maths import masks, scores
from nmlearn.native import library as native
from nmlearn.native import training
from processes import apart

pytestmark = pytest.mark.skipif(native.library() is None, reason="the kernels are not built")


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_step_has_the_bits_of_the_pytorch_path(layout, dtype, settings):
    if not rounds_alike():
        pytest.skip("torch was told to use another instruction set")
    check_step(layout, dtype, settings)


@pytest.mark.parametrize("settings", SETTINGS[:2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_stepped_and_cleared_with_the_bits_of_two_passes(layout, settings):
    if not rounds_alike():
        pytest.skip("torch was told to use another instruction set")
    check_weights(layout, settings)


@pytest.mark.parametrize("settings", ADAMW)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_adamw_has_the_bits_of_torchs(layout, settings):
    if not rounds_alike():
        pytest.skip("torch was told to use another instruction set")
    check_adamw(layout, settings)


@pytest.mark.parametrize("layout", ["plain", "channels_last", "turned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_memory_is_left_to_the_kernels_whatever_its_order(dtype, layout):
    assert training.score_step_(*case(layout, dtype), **SETTINGS[0]) == []
    assert training.clear_(random(layout, (5, 16, 3, 3), dtype), LAYOUTS[layout]((5, 16, 3, 3), torch.int8))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_clear_has_the_bits_of_the_pytorch_path(dtype, layout):
    for shape in SHAPES:
        x = random(layout, shape, dtype)
        keep = LAYOUTS[layout](shape, torch.int8).copy_(masks.bits(torch.rand(shape) < 0.5))
        expected = without_kernels(lambda x=x, keep=keep: masks.clear_(x.clone(), keep))
        masks.clear_(x, keep)
        whole = masks.SAME_SIZE[x.element_size()]
        assert torch.equal(x.view(whole), expected.view(whole))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_shares_of_threads_meet(threads):
    """More values than one share takes, in tensors that end within shares."""
    torch.set_num_threads(threads)
    sizes = (70_001, 3, 0, 131_072, 64, 1)
    s, v, g, w = ([torch.randn(n) for n in sizes] for _ in range(4))
    expected = [(a.double(), b.double()) for a, b in zip(s, v, strict=True)]
    scores.sgd_(s, v, g, w, lr=0.1, momentum=0.9, weight_decay=1e-2)
    for i, (a, b) in enumerate(expected):
        change = 0.9 * b + g[i].double() * w[i].double() + 1e-2 * a
        torch.testing.assert_close(v[i].double(), change, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(s[i].double(), a - 0.1 * change, rtol=1e-6, atol=1e-6)
    x, keep = torch.randn(200_003), masks.bits(torch.rand(200_003) < 0.5)
    expected_x = torch.where(keep != 0, x, 0.0)
    assert torch.equal(masks.clear_(x, keep), expected_x)


@pytest.mark.parametrize(("isa", "torchs"), [("avx512", "avx512"), ("avx2", "avx2"), ("portable", "default")])
def test_every_instruction_set_has_the_bits_of_torchs_own(isa, torchs):
    found = apart(check_all, isa, torchs)
    if not found:
        pytest.skip(f"this machine has no {isa}")
    assert found == isa


def tensors(change=lambda lists: None, dtype=torch.float32):
    lists = [[torch.randn(8, 8, dtype=dtype)] for _ in range(4)]
    change(lists)
    return lists


def of_half_weights(lists):
    lists[2][0], lists[3][0] = lists[2][0].half(), lists[3][0].half()


def of_another_layout(lists):
    lists[2][0] = lists[2][0].t()


def of_a_bfloat16_gradient(lists):
    lists[2][0] = lists[2][0].bfloat16()


def with_holes(lists):
    for tensors_of in lists:
        tensors_of[0] = torch.randn(8, 16)[:, ::2]


def expanded(lists):
    for tensors_of in lists:
        tensors_of[0] = torch.randn(8, 1).expand(8, 8)


def on_meta(lists):
    for tensors_of in lists:
        tensors_of[0] = tensors_of[0].to("meta")


def sparse(lists):
    lists[2][0] = lists[2][0].to_sparse()


STRANGE = [of_half_weights, of_another_layout, of_a_bfloat16_gradient, with_holes, expanded, on_meta, sparse]


@pytest.mark.parametrize("change", STRANGE)
def test_what_the_kernels_cannot_read_is_left_to_pytorch(change):
    settings = SETTINGS[0]
    ordinary, strange = tensors(), tensors(change)
    mixed = [[a[0], b[0]] for a, b in zip(ordinary, strange, strict=True)]
    assert training.score_step_(*mixed, **settings) == [1]
    assert training.score_step_(*tensors(dtype=torch.float64), **settings) == [0]


def test_a_tensor_that_was_written_knows_it():
    """Autograd and whoever watches write counters (nmlearn.learn.quiet) see the kernels' writes as they see torch's."""
    s, v, g, w = tensors()
    before = [x[0]._version for x in (s, v, g, w)]
    scores.sgd_(s, v, g, w, **SETTINGS[0])
    masks.clear_(w[0], torch.zeros(8, 8, dtype=torch.int8))
    after = [x[0]._version for x in (s, v, g, w)]
    assert [b < a for b, a in zip(before, after, strict=True)] == [True, True, False, True]


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:16"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_training_is_the_same_with_and_without_kernels(pattern, layout):
    def trained():
        model = convnet().to(memory_format=layout)
        optimizer, masks_seen = sgd(model), []
        sparsifier = nm.Sparsifier(model, nm.LBC(pattern, end=0.6)).attach(optimizer, 20)
        see = lambda _: masks_seen.append({k: m.clone() for k, m in sparsifier.masks().items()})  # noqa: E731
        losses = train(model, optimizer, batches(20), after=see)
        return losses, model.state_dict(), masks_seen

    if not rounds_alike():
        pytest.skip("torch was told to use another instruction set")
    (losses, weights, seen), (losses_t, weights_t, seen_t) = trained(), without_kernels(trained)
    assert losses == losses_t
    assert all(torch.equal(weights[k], weights_t[k]) for k in weights)
    assert all(torch.equal(a[k], b[k]) for a, b in zip(seen, seen_t, strict=True) for k in a)
