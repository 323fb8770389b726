"""nm.accelerate for GPUs: what is measured and replaced, on a simulated device, with a few tests on a real one.

The simulated one computes on the CPU: decode by unpacking, CUTLASS's product by the dense weight. cuSPARSELt, which is
really called, fails there.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import nmlearn as nm
from nmlearn.acceleration import candidates, gpu_candidates, gpu_timing, whole
from nmlearn.acceleration.gpu import Gpu
from nmlearn.acceleration.timing import Timing
from nmlearn.lab.bench.weights import sparse_
from nmlearn.maths.pattern import Pattern
from nmlearn.packed.gpu_modules import DecodeLinear, SemiStructuredConv2d, SemiStructuredLinear
from nmlearn.packed.kernels import semi_structured, triton_decode
from triton_interpreter import needs_triton

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


class Pretended(Gpu):
    """Records its calls."""

    cache, capturable = 0, True

    def __init__(self, device=None):
        super().__init__(torch.device("cpu"))
        self.waits, self.captures = 0, 0

    def name(self):
        return "a pretended GPU"

    def cache_bytes(self):
        return self.cache

    def wait(self):
        self.waits += 1

    def captured(self, run):
        self.captures += 1
        return (lambda: run()) if self.capturable else None


@pytest.fixture
def times():
    """Seconds by the prefix of a candidate's name; 1 for candidates not listed."""
    return {"decode": 0.5, "cutlass": 0.5, "cusparselt": 0.5, "after": 0.5}


@pytest.fixture
def gpu(monkeypatch, times):
    def told(calls, **_):
        for call in calls.values():
            call()
        return Timing({name: times.get(name, 1.0) for name in calls})

    def obstacle(*args):
        with monkeypatch.context() as patched:
            patched.setattr(triton_decode, "_unavailable", lambda device: "")
            return triton_decode.obstacle(*args)

    gpu = Pretended()
    monkeypatch.setattr(candidates, "gpu_of", lambda device: gpu)
    monkeypatch.setattr(whole, "gpu_of", lambda device: gpu)
    monkeypatch.setattr(gpu_candidates, "triton_decode", SimpleNamespace(obstacle=obstacle))
    monkeypatch.setattr(gpu_timing, "interleaved", told)
    monkeypatch.setattr(gpu_timing, "FEWEST", 1)
    return gpu


def layers(*patterns, dtype=torch.float32, size=64):
    model = nn.Sequential(*(nn.Linear(size, size) for _ in patterns)).eval()
    for layer, pattern in zip(model, patterns, strict=True):
        if pattern:
            sparse_(layer.weight, pattern)
    return model.to(dtype)


def test_decode_is_used_where_it_was_faster(gpu):
    model, x = layers("1:4", None, "2:8"), torch.randn(3, 64)
    reference = copy.deepcopy(model)
    report = nm.accelerate(model, x, cache=None)
    assert [type(layer) for layer in model] == [DecodeLinear, nn.Linear, DecodeLinear]
    assert [(row.kernel, row.chosen) for row in report.rows] == [("decode", True), ("", False), ("decode", True)]
    assert not model[0].values.is_inference() and gpu.waits
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(x))
    assert "a pretended GPU, in a CUDA graph" in str(report) and "threads" not in str(report)
    assert (report.before_ms, report.after_ms, report.graph) == (1000, 500, True)


def accelerated_with_the_kernel():
    """The layer that became packed, and how far its outputs are from dense; runs in the interpreter's process."""
    model, x = layers("1:4"), torch.randn(3, 64)
    reference = copy.deepcopy(model)
    candidates.gpu_of = whole.gpu_of = lambda device: Pretended()
    gpu_timing.interleaved = lambda calls, **_: Timing({n: 0.5 if n in ("decode", "after") else 1.0 for n in calls})
    nm.accelerate(model, x, cache=None)
    with torch.no_grad():
        return type(model[0]).__name__, float((model(x) - reference(x)).abs().max())


@needs_triton
def test_decode_by_its_kernel(interpreter):
    name, difference = interpreter(accelerated_with_the_kernel)
    assert name == "DecodeLinear" and difference < 1e-5


def test_dense_stays_where_it_is_as_fast(gpu, times):
    times["decode"] = 0.98
    model = layers("1:4")
    report = nm.accelerate(model, torch.randn(3, 64), cache=None)
    assert type(model[0]) is nn.Linear and report.rows[0].why == "dense is as fast"


def test_a_way_that_fails_at_its_first_call_is_a_no_with_its_reason(gpu, cutlass):
    model, x = layers("2:4", dtype=torch.bfloat16), torch.randn(100, 64).bfloat16()
    reference = copy.deepcopy(model)
    row = nm.accelerate(model, x, cache=None).rows[0]
    assert type(model[0]) is SemiStructuredLinear and (row.kernel, row.chosen) == ("cutlass", True)
    assert row.why.startswith("cusparselt: RuntimeError: ") and "decode" not in row.why
    torch.testing.assert_close(model(x), reference(x))


def test_a_layer_whose_ways_all_fail_stays_dense(gpu, monkeypatch):
    def broken(*_):
        raise NotImplementedError

    monkeypatch.setattr(gpu_candidates, "pack", broken)
    model = layers("1:4")
    report = nm.accelerate(model, torch.randn(3, 64), cache=None)
    row = report.rows[0]
    assert type(model[0]) is nn.Linear and not row.chosen and row.sparse_ms is None and row.dense_ms == 1000
    assert row.why == "no kernel supports all its inputs; decode: NotImplementedError"
    assert row.why in str(report)


def test_triton_that_cannot_launch_is_a_no(gpu, monkeypatch):
    monkeypatch.setattr(triton_decode, "_unavailable", lambda device: "")  # so that the kernel itself is called
    row = nm.accelerate(layers("1:4"), torch.randn(3, 64), cache=None).rows[0]
    assert not row.chosen and "decode: " in row.why


def test_an_error_of_the_dense_layer_is_raised(gpu):
    def broken():
        raise RuntimeError("dense is broken")

    with pytest.raises(RuntimeError, match="dense is broken"):
        gpu_timing.of_candidates({"eager": broken}, gpu, {})


def test_a_1x1_convolution(gpu, cutlass):
    model = nn.Sequential(nn.Conv2d(64, 32, 1, stride=2), nn.Conv2d(32, 32, 3)).eval()
    for layer in model:
        sparse_(layer.weight, "2:4")
    model, x = model.bfloat16(), torch.randn(2, 64, 9, 9).bfloat16()
    reference = copy.deepcopy(model)
    report = nm.accelerate(model, x, cache=None)
    assert [type(layer) for layer in model] == [SemiStructuredConv2d, nn.Conv2d] and report.images == "channels_last"
    assert "only 1x1" in report.rows[1].why
    torch.testing.assert_close(model(x).float(), reference(x).float(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("pattern", "dtype", "tokens", "int8", "why"),
    [
        ("1:4", torch.float32, 65, False, "decode: 65 tokens, more than 64; cusparselt, cutlass: torch.float32 is not"),
        (
            "1:32",
            torch.bfloat16,
            1,
            False,
            "decode: group size 32, not 4, 8 or 16; cusparselt, cutlass: not on an",
        ),
        ("1:4", torch.float32, 1, True, "there are no int8 kernels for GPUs"),
    ],
)
def test_why_nothing_is_measured(gpu, pattern, dtype, tokens, int8, why):
    model = layers(pattern, dtype=dtype)
    row = nm.accelerate(model, torch.randn(tokens, 64).to(dtype), int8=int8, cache=None).rows[0]
    assert row.why.startswith(why) and row.dense_ms is None


def test_inputs_of_another_dtype_than_the_weight(gpu):
    reasons = gpu_candidates.refusals(layers("1:4")[0], Pattern("1:4"), (1, 64), torch.bfloat16)
    assert set(reasons.values()) == {"its inputs are bfloat16, its weight float32"}


def test_a_candidate_must_support_every_shape_that_the_layer_saw(gpu, cutlass):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layers("2:4", dtype=torch.bfloat16)[0]

        def forward(self, x):
            return self.layer(x), self.layer(x[:3]), self.layer(x[:3])

    row = nm.accelerate(Twice().eval(), torch.randn(65, 64).bfloat16(), cache=None).rows[0]
    assert row.kernel == "cutlass" and row.dense_ms == 3000 and row.sparse_ms == 1500


def test_a_model_that_is_not_faster_is_put_back(gpu, times):
    times["after"] = 1.0
    model = layers("1:4")
    report = nm.accelerate(model, torch.randn(3, 64), cache=None)
    assert type(model[0]) is nn.Linear and report.rows[0].why == "the model as a whole was not faster"


def test_a_model_that_cannot_be_captured_is_compared_as_called(gpu):
    gpu.capturable = False
    report = nm.accelerate(layers("1:4"), torch.randn(3, 64), cache=None)
    assert not report.graph and report.rows[0].chosen and "called from Python" in str(report)
    assert whole.like({"called": 3.0, "graph": 1.0}, {"called": 2.0}) == 3.0


def test_times_and_failures_are_kept(gpu, cutlass, tmp_path, monkeypatch):
    cache, x = tmp_path / "times.json", torch.randn(100, 64).bfloat16()
    first = nm.accelerate(layers("2:4", dtype=torch.bfloat16), x, cache=cache)
    monkeypatch.setattr(gpu_timing, "of_candidates", lambda *_: pytest.fail("measured again"))
    again = nm.accelerate(layers("2:4", dtype=torch.bfloat16), x, cache=cache)
    assert again.rows == first.rows and "cusparselt" in again.rows[0].why
    monkeypatch.setattr(gpu, "name", lambda: "another GPU")
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        nm.accelerate(layers("2:4", dtype=torch.bfloat16), x, cache=cache)


def test_ways_go_round_copies_that_exceed_the_cache(monkeypatch):
    gpu, made, called = Pretended(), {"eager": 0, "decode": 0}, []
    gpu.cache = 1000

    def way(name, nbytes):
        def copied():
            made[name] += 1
            number = made[name]
            return lambda x: called.append((name, number)) or x

        return lambda: gpu_timing.Candidate(copied, nbytes, torch.zeros(1))

    def timed(calls, **_):
        called.clear()
        for call in calls.values():
            call()
        return Timing(dict.fromkeys(calls, 80.0))

    monkeypatch.setattr(gpu_timing, "interleaved", timed)
    timing, failed = gpu_timing.of_candidates({"eager": way("eager", 1500), "decode": way("decode", 75)}, gpu, {})
    assert timing.seconds == {"eager": 2.0, "decode": 2.0} and not failed  # 40 calls of each
    assert len(called) == 80 and len(set(called)) == 2 + 40 and gpu.captures == 2


def on_gpu(model, x):
    """The report, the model as it is now, and what it and the dense one compute."""
    reference = copy.deepcopy(model)
    report = nm.accelerate(model, x, cache=None)
    with torch.inference_mode():
        return report, model(x), reference(x)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(("pattern", "tokens"), [("1:8", 4), ("2:4", 512)])
def test_on_a_gpu_the_report_says_what_was_replaced(pattern, tokens):
    model = layers(pattern, None, dtype=torch.bfloat16, size=2048).cuda()
    report, got, expected = on_gpu(model, torch.randn(tokens, 2048, device="cuda", dtype=torch.bfloat16))
    assert report.graph and report.kernels == torch.cuda.get_device_name()
    row = report.rows[0]
    assert row.dense_ms > 0 and row.chosen == (type(model[0]) is not nn.Linear) and (row.sparse_ms or row.why)
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("way", gpu_candidates.KERNELS)
def test_on_a_gpu_every_way_computes_the_same(way, monkeypatch):
    tokens = 4 if way == "decode" else 128
    weight, x = layers("1:4", dtype=torch.bfloat16, size=256).cuda(), torch.randn(tokens, 256).bfloat16().cuda()
    if why := gpu_candidates.refusals(weight[0], Pattern("1:4"), (tokens, 256), torch.bfloat16)[way]:
        pytest.skip(why)

    def told(calls, **_):
        return Timing({name: 0.5 if name in (way, "after") else 1.0 for name in calls})

    monkeypatch.setattr(gpu_timing, "interleaved", told)
    report, got, expected = on_gpu(weight, x)
    if way in report.rows[0].why:
        pytest.skip(report.rows[0].why)
    assert report.rows[0].kernel == way
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


@needs_gpu
@pytest.mark.gpu
def test_on_a_gpu_a_model_that_waits_is_compared_as_called():
    class Waits(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers("1:8", size=512)

        def forward(self, x):
            return self.layers(x) * (2 if x.sum().item() > 0 else 1)

    report, got, expected = on_gpu(Waits().eval().cuda(), torch.randn(1, 512, device="cuda"))
    assert not report.graph
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    torch.cuda.synchronize()  # a capture that was given up has left nothing behind


def test_there_is_no_gpu_behind_a_cpu():
    assert candidates.gpu_of(torch.device("cpu")) is None
    assert type(candidates.gpu_of(torch.device("cuda", 1))) is Gpu
    assert semi_structured.MULTIPLES.keys() | {"decode"} == set(gpu_candidates.KERNELS)
