"""Calibration: block by block, within a bound, and the model left as it was."""

from __future__ import annotations

import contextlib
import resource
import sys

import pytest
import torch
from torch import Tensor, nn

import nets
import nmlearn as nm
from calibration_models import ByInputs, Forgets, Language, chain, normal, tokens
from nmlearn.errors import ConfigError
from nmlearn.learn import calibration, stages
from processes import apart


@pytest.fixture(autouse=True)
def _nothing_noted() -> None:
    ByInputs.noted.clear()


# Block by block


def test_each_block_sees_what_the_sparse_ones_before_it_produce() -> None:
    model, data = Language(), [tokens(seed=i) for i in range(3)]
    dense = nm.calibrate(model, data)
    summary = nm.Sparsifier(model, ByInputs("2:4")).apply(data)
    assert summary.weights == 12 and summary.density == 0.5 and summary.removed > 0
    names = list(ByInputs.noted)
    assert names == [f"layers.{i}.{part}.weight" for i in range(3) for part in ("qkv", "out", "up", "down")]
    sparse = nm.calibrate(model, data)  # all before are sparse now
    for name, noted in ByInputs.noted.items():
        assert noted is not None and noted.gram_gkk is not None
        first = name.endswith("qkv.weight")  # of its block: behind it come those of its own stage, dense at that time
        assert torch.equal(noted.gram_gkk, sparse[name].gram_gkk) or not first, name
        assert torch.equal(noted.gram_gkk, dense[name].gram_gkk) == name.startswith("layers.0"), name


def test_a_small_bound_cuts_blocks() -> None:
    """The sums of a stage stay within it, and within a block the later stages see the sparse layers before them."""
    model, data = Language(), [tokens()]
    dense = nm.calibrate(model, data)["layers.0.down.weight"]
    nm.Sparsifier(model, ByInputs("2:4")).apply(data, memory=8_000)
    sparse = nm.calibrate(model, data)
    noted = ByInputs.noted["layers.0.down.weight"]
    assert noted is not None and noted.gram_gkk is not None
    torch.testing.assert_close(noted.gram_gkk, sparse["layers.0.down.weight"].gram_gkk)  # summed in other pieces
    assert not torch.allclose(noted.gram_gkk, dense.gram_gkk)


def test_stages_lie_within_blocks_and_the_bound() -> None:
    assert parts(Language(), tokens()) == [[f"{i}.{n}" for n in ("qkv", "out", "up", "down")] for i in range(3)]
    bounded = parts(Language(), tokens(), most=6000)
    assert bounded == [[f"{i}.{n}" for n in some] for i in range(3) for some in (("qkv", "out", "up"), ("down",))]
    nested = nn.Sequential(
        nn.Sequential(chain(8, 8, 8), chain(8, 8, 8)), nn.Sequential(chain(8, 8, 8)), nn.Linear(8, 8)
    )
    assert [len(some) for some in parts(nested, normal(2, 8))] == [2, 2, 1, 1]
    assert [len(some) for some in parts(chain(8, 8, 8, 8), normal(2, 8))] == [1, 1]
    parted = nn.Sequential(chain(8, 8, 8), nn.Sequential(nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 8)))
    assert [len(some) for some in parts(parted, normal(2, 8))] == [1, 1, 1, 1]  # two parts, and nothing that repeats


def parts(model: nn.Module, batch: Tensor, most: int = 1 << 30) -> list[list[str]]:
    layers, _ = calibration.seeable(model, nm.Sparsifier(model, nm.OneShot("1:1")).plan.sparse)
    runs = calibration._recorded(model, [batch], layers)
    cut = stages.cut(layers, runs, model, True, most)
    assert all(sum(layer.bytes(True) for layer in stage.layers) <= most for stage in cut)
    return [[layer.name.removeprefix("layers.").removesuffix(".weight") for layer in stage.layers] for stage in cut]


def test_orders_of_batches_are_merged() -> None:
    assert stages.merged([["a", "b", "a", "d"], ["a", "c", "b"], ["e"]]) == ["e", "a", "c", "b", "d"]


class Experts(nn.Module):
    """Only that of two experts is called that a batch asks for, and what follows so many times."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.after, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, which: int, times: int = 1) -> Tensor:
        x = self.experts[which](x)
        return self.head(sum(self.after(x) for _ in range(times)))


def test_batches_may_call_different_layers() -> None:
    model, x = Experts(), normal(16, 8)
    data = [(x, 0), (2 * x, 1), (x, 1, 2)]
    nm.Sparsifier(model, ByInputs("2:4")).apply(data)
    assert list(ByInputs.noted)[-1] == "after.weight"
    assert [inputs.tokens for inputs in ByInputs.noted.values() if inputs] == [32, 16, 64]
    noted = ByInputs.noted["after.weight"]
    assert noted is not None and noted.gram_gkk is not None
    assert torch.equal(noted.gram_gkk, nm.calibrate(model, data)["after.weight"].gram_gkk)


def test_a_run_ends_at_the_last_layer_of_its_stage() -> None:
    model, calls = Language(), []
    for i, layer in enumerate(model.layers):
        layer.down.register_forward_hook(lambda *_, i=i: calls.append(i))
    nm.Sparsifier(model, ByInputs("2:4")).apply([tokens(), tokens()])
    # The recorded runs; then each block's own `down` is given its input, no more.
    assert calls == [0, 1, 2, 0, 1, 2, 0, 0, 0, 1, 0, 1]


class Catches(nn.Sequential):
    """Goes on where a layer fails."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            with contextlib.suppress(Exception):
                x = layer(x)
        return x


def test_a_model_that_catches_exceptions_ends_all_the_same() -> None:
    model, calls = Catches(*chain(8, 8, 8, 8)), []
    model[5].register_forward_hook(lambda *_: calls.append(1))
    nm.Sparsifier(model, ByInputs("2:4")).apply([normal(4, 8)])
    assert len(calls) == 1  # in the recorded run


def test_a_layer_that_is_called_again_is_seen_in_all_calls() -> None:
    block = nn.Linear(8, 8)
    model = nn.Sequential(block, nn.Linear(8, 8), block, nn.Linear(8, 4))
    x = normal(16, 8)
    nm.Sparsifier(model, ByInputs("2:4")).apply([x])
    assert [inputs.tokens for inputs in ByInputs.noted.values() if inputs] == [32, 16]


# The model stays as it was


def state_of(model: nn.Module) -> tuple[object, ...]:
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    return [m.training for m in model.modules()], hooks, [p.requires_grad for p in model.parameters()], fast


class Noisy(nn.Module):
    """Draws numbers and counts its calls in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + torch.rand_like(x)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_its_surroundings_stay_as_they_were(fails: bool) -> None:
    model = nn.Sequential(nets.convnet(), Noisy(), nn.Linear(5, 5)).train()
    model[0].norm.eval()
    model[0].stem.weight.requires_grad_(False)
    x = nets.batches(1)[0][0]
    before, tensors, rng = state_of(model), nets.snapshot(model), torch.get_rng_state()
    data = [x, x[:, :1] if fails else x]
    if fails:
        with pytest.raises(ConfigError, match=r"float32 \[8, 1, 8, 8\].*forward said.*\(x for x, y in loader\)"):
            nm.calibrate(model, data)
    else:
        nm.calibrate(model, data)
    assert state_of(model) == before and nets.same(nets.snapshot(model), tensors)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.is_grad_enabled()


def test_modules_compiled_in_place_are_seen() -> None:
    model = Language()
    expected = nm.calibrate(model, [tokens()])
    for layer in model.layers:
        layer.compile(backend="eager")
    with torch.no_grad():
        model(tokens())
    assert nets.same(
        {k: v.gram_gkk for k, v in nm.calibrate(model, [tokens()]).items()},
        {k: v.gram_gkk for k, v in expected.items()},
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_sums_on_a_gpu_are_those_on_a_cpu() -> None:
    model, data = Language(), [tokens()]
    expected = nm.calibrate(model, data)
    model, data = model.cuda(), [ids.cuda() for ids in data]
    before = torch.cuda.get_rng_state()
    for name, inputs in nm.calibrate(model, data).items():
        assert inputs.gram_gkk is not None and inputs.gram_gkk.is_cuda
        torch.testing.assert_close(inputs.gram_gkk.cpu(), expected[name].gram_gkk, rtol=1e-4, atol=1e-4)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert nm.Sparsifier(model, ByInputs("2:4")).apply(data).density == 0.5


# Memory


def test_more_than_fits_is_refused_by_calibrate() -> None:
    with pytest.raises(ConfigError, match=r"12 weights.*one block at a time"):
        nm.calibrate(Language(), [tokens()], memory=30_000)
    nm.calibrate(Language(), [tokens()], needs="sums", memory=30_000)


def _peak(memory: int) -> tuple[int, int, int]:
    """Bytes of a model, of the process when that has run once, and of its peak when it was calibrated."""
    model, data = Language(1024, 4096, 6), [tokens(4, 256)]
    with torch.no_grad():
        model(*data)
    before = _resident()
    nm.Sparsifier(model, Forgets("2:4")).apply(data, memory=memory)
    return sum(p.nbytes for p in model.parameters()), before, _resident()


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is that of Linux")
@pytest.mark.parametrize("memory", [1 << 30, 1 << 27])
def test_a_transformer_of_300_megabytes_calibrates_in_two_gigabytes(memory: int) -> None:
    size, before, peak = apart(_peak, memory)
    assert size > 300e6 and peak < 2e9, f"{peak:,}"
    # A stub's own passes over a weight of 16 MB come on top of the bound.
    assert peak - before < memory + (100 << 20), f"{peak:,} after {before:,}"
