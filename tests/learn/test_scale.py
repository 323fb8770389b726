"""Many ranks, every way of sharding: as one process does on the whole batch, and nothing communicated.

The jobs of a test run one after the other in the same processes, which take longer to start than most jobs do.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.tensor import Replicate, Shard

import nmlearn as nm
from nmlearn.errors import StateError
from nmlearn.model.shards import chunks
from places import ROOT
from scale_checkpoints import SAVED, declined, overflow, refusals, resumed, saved_on_the_way, wrapped_first
from scale_ranks import (
    METHODS,
    STEPS,
    attached,
    data,
    learned,
    one,
    pipeline,
    plain,
    replicated,
    result,
    run_jobs,
    watched,
)

ONE_PROCESS = "ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning"  # which is meant here
pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings(ONE_PROCESS)]
SPLIT = ("fsdp", "fsdp-float64", "hsdp", "tensor")
WAYS = ("ddp", "zero", "fsdp-of-one", *SPLIT)
QUICK = ("ddp", "zero", "fsdp", "tensor")
FOUR = ("fsdp", "hsdp", "tensor", "tensor-fsdp")


def alone(method: str) -> dict[str, Any]:
    """One process, the whole batch."""
    run = one()
    sparsifier = attached(run, METHODS[method])
    for x, y in data():
        run.step(x, y)
    return result(run, sparsifier)


def check(of_ranks: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    """Masks equal to those of one process, weights to 1e-6; bit-equal among the ranks."""
    for found in of_ranks:
        assert found["masks"] and found["weights"]
        for name, mask in found["masks"].items():
            assert torch.equal(mask, expected["masks"][name]), name
        for name, weight in found["weights"].items():
            torch.testing.assert_close(weight, expected["weights"][name], rtol=0, atol=1e-6)
            assert all(torch.equal(weight, other["weights"].get(name, weight)) for other in of_ranks)


def same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    """Bit-equal weights and masks, and a state of the same size."""
    pairs = [(x[part], y[part]) for x, y in zip(a, b, strict=True) for part in ("weights", "masks")]
    alike = all(torch.equal(x[name], y[name]) for x, y in pairs for name in x)
    return alike and [x["bytes"] for x in a] == [y["bytes"] for y in b]


TRAINED = [
    *((learned, way, "lbc") for way in QUICK),
    *((learned, "fsdp", name) for name in ("srste", "maskllm")),
    *((learned, "ddp", name) for name in ("maskllm", "sste", "maxq", "bimask")),
]
COUNTED = [(plain, way) for way in ("ddp", "fsdp", "tensor")]
WRAPPED = [(wrapped_first, name) for name in ("oneshot", "srste", "lbc")]
OTHERS = [*WRAPPED, (watched,), (pipeline, "lbc"), (replicated, "lbc"), (overflow,), (refusals,)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Any, ...], list[Any]]:
    """Job -> its results on two ranks."""
    jobs = [*TRAINED, *COUNTED, *OTHERS]
    return dict(zip(jobs, run_jobs(2, jobs, tmp_path_factory.mktemp("two")), strict=True))


def test_two_ranks(two: dict[tuple[Any, ...], list[Any]]) -> None:
    """DDP, ZeRO, FSDP2, tensor parallel, pipeline stages, replicated DTensors; uneven rows."""
    expected = {name: alone(name) for name in {job[-1] for job in TRAINED}}
    for job in (*TRAINED, (pipeline, "lbc"), (replicated, "lbc")):
        check(two[job], expected[job[-1]])
    stages = two[pipeline, "lbc"]
    assert {name for stage in stages for name in stage["masks"]} == expected["lbc"]["masks"].keys()
    assert two[overflow,] == [[1, 2, 2, 3]] * 2


def test_nothing_is_communicated(two: dict[tuple[Any, ...], list[Any]]) -> None:
    """Step by step (DDP orders its buckets anew in the second); also when combinations are removed."""
    for training in TRAINED:
        if (plain, training[1]) in COUNTED:
            assert [run["collectives"] for run in two[training]] == two[plain, training[1]], training[1]
    assert two[watched,] != two[plain, "fsdp"]  # the count sees a collective in a step hook


def test_what_cannot_work_is_refused_on_every_rank(two: dict[tuple[Any, ...], list[Any]]) -> None:
    first, second = two[refusals,]
    assert first == second
    for case, text in {
        "sharded after attach": "stem.weight: given a model with other parameters than at attach in 6 places",
        "sharded after the plan": "another parameter there now",
        "sharded after the optimizer": "another parameter there now",
        "cut groups": "blocks.0.down.weight: given SGD: its shards cut groups apart",
        "FSDP1": "flat parameters",
        "ZeRO in backward": "overlap_with_ddp=False",
        "whole weights": "stem.weight: given SGD: sste has to see whole weights, and this one is sharded; use DDP, or",
        "another backward": "stem.weight: given SGD: bimask changes the backward pass of a layer, which a DT",
        "DDP after attach": "wrap the model in DistributedDataParallel first, then make the sparsifier",
        "DDP when forgotten": "not refused",
        "nothing": "not refused",
    }.items():
        assert text in first[case], case


def test_ranks_that_begin_with_other_weights_are_one_under_ddp(two: dict[tuple[Any, ...], list[Any]]) -> None:
    """Wrapped first; the other order is refused."""
    for job in WRAPPED:
        first, second = two[job]
        assert all(torch.equal(weight, second[name]) for name, weight in first.items()), job


@pytest.mark.parametrize("method", ["lbc", pytest.param("srste", marks=pytest.mark.slow)])
def test_a_checkpoint_of_two_ranks(method: str, tmp_path: Path) -> None:
    """Written early, amid (asynchronously) and behind the schedule; read by two ranks, bit-equal, and by one."""
    jobs = [(saved_on_the_way, "fsdp", method, tmp_path), *((resumed, "fsdp", method, tmp_path, at) for at in SAVED)]
    uninterrupted, *others = run_jobs(2, jobs, tmp_path)
    check(uninterrupted, alone(method))
    for at, of_ranks in zip(SAVED, others, strict=True):
        assert same(of_ranks, uninterrupted), at
        check([resumed("one", method, tmp_path, at)], uninterrupted[0])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_two_ranks(method: str, tmp_path: Path) -> None:
    """As one process, or refused by name."""
    kind, no = type(METHODS[method]), ()
    no += SPLIT if kind.whole else ()
    no += ("fsdp-of-one",) if kind.other_backward else ()
    ways = [way for way in WAYS if way not in no]
    jobs = [*((learned, way, method) for way in ways), (pipeline, method)]
    jobs += [] if kind.other_backward else [(replicated, method)]
    counted = [(plain, way) for way in ("ddp", "fsdp") if way in ways]
    found = run_jobs(2, [*jobs, *counted, *((declined, way, method) for way in no)], tmp_path)
    results = dict(zip(jobs, found, strict=False))
    for of_ranks in results.values():
        check(of_ranks, alone(method))
    for (_, way), communicated in zip(counted, found[len(jobs) :], strict=False):
        assert [run["collectives"] for run in results[learned, way, method]] == communicated
    for said in found[len(jobs) + len(counted) :]:
        assert said[0] == said[1] and f".weight: given SGD: {method} " in said[0]


def test_every_registered_method_is_in_the_sweep() -> None:
    """Of those that calibrate one: once calibrated, they all take the zeros that are there."""
    others = {kind for kind in nm.METHODS.values() if kind("2:4").needs != "nothing"}
    assert {type(method) for method in METHODS.values()} == set(nm.METHODS.values()) - others | {nm.Wanda}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lbc", "srste"])
def test_four_ranks(method: str, tmp_path: Path) -> None:
    """Also two by two, a rank that has no row of a weight, and a checkpoint of two ranks read by four."""
    expected, two, four = alone(method), tmp_path / "two", tmp_path / "four"
    two.mkdir()
    four.mkdir()
    [uninterrupted] = run_jobs(2, [(saved_on_the_way, "fsdp", method, two)], two)
    reads = [(resumed, way, method, two, at) for way in ("fsdp", "tensor-fsdp") for at in SAVED]
    saves = [(saved_on_the_way, "fsdp", method, four)]
    more = [(learned, way, "maskllm") for way in FOUR if method == "lbc"]  # its noise is cut as its state is
    jobs = [*((learned, way, method) for way in FOUR), *saves, *reads, (plain, "tensor-fsdp"), *more]
    results = run_jobs(4, jobs, four)
    (*found, communicated), others = results[: len(jobs) - len(more)], results[len(jobs) - len(more) :]
    for of_ranks in found:
        check(of_ranks, expected)
    for of_ranks in others:
        check(of_ranks, alone("maskllm"))
    assert [run["collectives"] for run in found[FOUR.index("tensor-fsdp")]] == communicated
    for at in SAVED:  # a rank without rows of a weight leaves the same state behind as the others
        check([resumed("one", method, four, at)], uninterrupted[0])


@pytest.mark.slow
def test_bfloat16_under_fsdp(tmp_path: Path) -> None:
    """MixedPrecisionPolicy in bfloat16: not one process to the bit, but one decision on all ranks, in the pattern."""
    (first, second), *_ = run_jobs(
        2, [(learned, "fsdp-bfloat16", "lbc"), (learned, "fsdp-bfloat16", "srste")], tmp_path
    )
    for name, mask in first["masks"].items():
        assert torch.equal(mask, second["masks"][name])
        assert bool(((mask != 0).unflatten(1, (-1, 4)).sum(-1) == 2).all())


def test_a_checkpoint_read_without_its_weights_is_refused() -> None:
    """What a partial read leaves behind when the file lacks a weight, or when the reader's schedule had ended."""
    run = one()
    sparsifier = attached(run, nm.LBC("2:4"))
    fresh = sparsifier.state_dict()["weights"]["stem.weight"]
    for x, y in data()[:3]:
        run.step(x, y)
    saved = sparsifier.state_dict()
    early = {name: dict(entry, state=dict(entry["state"])) for name, entry in saved["weights"].items()}
    with pytest.raises(StateError, match=r"stem.weight: given nothing: the saved state does not have it"):
        sparsifier.load_state_dict(saved | {"weights": early | {"stem.weight": fresh}})
    del early["stem.weight"]["state"]["score"]
    with pytest.raises(StateError, match=r"stem.weight score: given nothing"):
        sparsifier.load_state_dict(saved | {"weights": early})
    sparsifier.load_state_dict(saved)
    assert sparsifier.step == 3 and sparsifier.total_steps == STEPS


def stated_bytes() -> list[tuple[str, str, torch.dtype, list[float]]]:
    """The table of bytes a weight in docs/scale.md: method, pattern, the weights' type, and a row's numbers."""
    page = (ROOT / "docs" / "scale.md").read_text()
    found = []
    for name, pattern, cells in re.findall(r"^\| (\w+) (\d+:\d+) \| ([\d.() |]+) \|$", page, re.MULTILINE):
        row = [[float(number) for number in re.findall(r"[\d.]+", cell)] for cell in cells.split(" | ")]
        found.append((name, pattern, torch.float32, [numbers[0] for numbers in row]))
        found.append((name, pattern, torch.bfloat16, [numbers[-1] for numbers in row]))
    return found


def bytes_in(state: Any) -> int:
    """Of all tensors in a state."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    return sum(map(bytes_in, state.values())) if isinstance(state, dict) else 0


@pytest.mark.parametrize("name, pattern, dtype, stated", stated_bytes())
def test_bytes_per_weight(name: str, pattern: str, dtype: torch.dtype, stated: list[float]) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 4)).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    sparsifier = nm.Sparsifier(model, nm.methods.build(name, pattern)).attach(optimizer, 2)
    before = sparsifier.state_bytes(), bytes_in(sparsifier.state_dict(compact=True))
    for _ in range(2):
        model(torch.randn(4, 64, dtype=dtype)).sum().backward()
        optimizer.step()
    after = sparsifier.state_bytes(), bytes_in(sparsifier.state_dict(compact=True))
    weights = sum(row.weights for row in sparsifier.plan.sparse)
    assert weights == 64 * 32
    assert [each / weights for each in (before[0], after[0], before[1], after[1])] == stated


def test_size_of_a_checkpoint() -> None:
    """In bytes a weight, as docs/scale.md says: in the middle of the schedule and after it; bits, and bytes."""
    page = " ".join((ROOT / "docs" / "scale.md").read_text().split())
    [told] = re.findall(r"a checkpoint of weights and AdamW, (.*) \(`test_size_of_a_checkpoint`", page)
    dense, bits, bits_after, octets, octets_after = map(float, re.findall(r"\d+\.\d", told))
    model = torch.nn.Sequential(*(torch.nn.Linear(256, 256, bias=False) for _ in range(4)))
    optimizer = torch.optim.AdamW(model.parameters())
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4"), {"": "2:4"}).attach(optimizer, 20, travels=False)
    for step, expected in ((5, (dense, bits, octets)), (20, (dense, bits_after, octets_after))):
        while sparsifier.step < step:
            model(torch.randn(4, 256)).square().mean().backward()
            optimizer.step()
        states = (None, sparsifier.state_dict(compact=True), sparsifier.state_dict())
        found = [size_of([model.state_dict(), optimizer.state_dict(), state]) / (4 * 256**2) for state in states]
        assert found == pytest.approx(expected, abs=0.06)


def size_of(state: Any) -> int:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getbuffer().nbytes


@pytest.mark.parametrize(
    "placements, mesh, lengths",
    [((Shard(1),), (3,), [6]), ((Shard(1), Shard(1)), (2, 2), [8, 4]), ((Replicate(), Shard(0)), (2, 2), [])],
)
def test_all_ranks_see_where_groups_are_cut(placements: Any, mesh: tuple[int, ...], lengths: list[int]) -> None:
    """16 inputs on three ranks are 6, 6 and 4: the last rank alone would find nothing wrong with groups of four."""
    weight: Any = SimpleNamespace(shape=(8, 16), placements=placements, device_mesh=SimpleNamespace(shape=mesh))
    assert chunks(weight, 1) == lengths
