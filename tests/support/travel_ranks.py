"""What the ranks of the tests of travelling states run: checkpoints of ZeroRedundancyOptimizer and by DCP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

import nmlearn as nm
from nmlearn.errors import NMLearnError
from nmlearn.learn.travel import KEY
from scale_checkpoints import SAVED, read
from scale_ranks import METHODS, RULES, STEPS, WAYS, Run, attached, data, ddp, result, zero


def cleared(run: Run) -> Run:
    """The same with weights of zero: whatever is right afterwards was read."""
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.zero_()
    return run


def check_groups(optimizer: torch.optim.Optimizer) -> None:
    """No key of ours in the live groups, nor in those of the optimizer that ZeroRedundancyOptimizer has inside."""
    groups = [*optimizer.param_groups, *getattr(getattr(optimizer, "optim", None), "param_groups", [])]
    assert groups and not [key for group in groups for key in group if KEY in key]


def trained_on(run: Run, sparsifier: nm.Sparsifier, start: int) -> dict[str, Any]:
    """From a step to the end."""
    for x, y in data()[start:]:
        run.step(x, y)
        check_groups(run.optimizer)
    found = result(run, sparsifier) | {"bytes": sparsifier.state_bytes()}
    sparsifier.finalize()
    return found


# ZeroRedundancyOptimizer: the first rank gathers the state and writes it


def zero_saved(method: str, folder: Path) -> dict[str, Any]:
    run = zero()
    sparsifier = attached(run, METHODS[method], travels=True)
    for step, (x, y) in enumerate(data()):
        if step in SAVED:
            save_zero(run, folder / f"{step}.pt")
        run.step(x, y)
    check_groups(run.optimizer)
    return result(run, sparsifier) | {"bytes": sparsifier.state_bytes()}


def save_zero(run: Run, path: Path) -> None:
    run.optimizer.consolidate_state_dict(0)
    if dist.get_rank() == 0:
        saved = run.optimizer.state_dict()
        assert KEY in saved["param_groups"][0]
        torch.save({"model": run.model.state_dict(), "optimizer": saved}, path)
    dist.barrier()


def zero_resumed(method: str, folder: Path, step: int, load_first: bool) -> dict[str, Any]:
    run = cleared(zero())
    sparsifier = None if load_first else attached(run, METHODS[method], travels=True)
    saved = torch.load(folder / f"{step}.pt", weights_only=True)
    run.model.load_state_dict(saved["model"])
    run.optimizer.load_state_dict(saved["optimizer"])
    sparsifier = sparsifier or attached(run, METHODS[method], travels=True)
    check_groups(run.optimizer)
    assert sparsifier.step == step
    return trained_on(run, sparsifier, step)


def zero_of_a_dense_run(folder: Path) -> dict[str, str]:
    """A state without a sparsifier's: nothing may begin in its middle without a word. What is said, by the order."""
    dense, path = zero(), folder / "dense.pt"
    dense.step(*data()[0])
    found = {"step, attach": said(lambda: attached(dense, METHODS["lbc"], travels=True))}
    dense.optimizer.consolidate_state_dict(0)
    if dist.get_rank() == 0:
        torch.save(dense.optimizer.state_dict(), path)
    dist.barrier()

    loaded = zero()
    loaded.optimizer.load_state_dict(torch.load(path, weights_only=True))
    found["load, attach"] = said(lambda: attached(loaded, METHODS["lbc"], travels=True))
    learner = nm.Sparsifier(loaded.forward, METHODS["lbc"], RULES)
    learner.attach(loaded.optimizer, STEPS, resume="anew")
    loaded.step(*data()[0])
    found["anew"] = said(learner.finalize)

    late = zero()
    learner = attached(late, METHODS["lbc"], travels=True)
    late.optimizer.load_state_dict(torch.load(path, weights_only=True))
    found["attach, load"] = said(lambda: late.step(*data()[0]))
    return found


def said(attempt: Callable[[], object]) -> str:
    """What an error of ours says."""
    try:
        attempt()
    except NMLearnError as error:
        return str(error)
    return "nothing"


# torch.distributed.checkpoint


def keys(folder: Path) -> list[str]:
    """What a checkpoint stores, by name."""
    return list(dcp.FileSystemReader(folder).read_metadata().state_dict_metadata)


def dcp_saved(way: str, method: str, folder: Path) -> dict[str, Any]:
    """In the forms that torch names: by get_state_dict, flattened, and an optimizer that is asked by DCP itself."""
    run = WAYS[way]()
    sparsifier = attached(run, METHODS[method], travels=True)
    flat = StateDictOptions(flatten_optimizer_state_dict=True)
    for step, (x, y) in enumerate(data()):
        if step in SAVED:
            model, optimizer = get_state_dict(run.model, run.optimizer)
            whole = {"model": model, "optimizer": optimizer, "sparsifier": sparsifier.state_dict()}
            flattened = {"optimizer": get_state_dict(run.model, run.optimizer, options=flat)[1]}
            for name, parts in ("", whole), ("-flat", flattened), ("-asked", {"optimizer": run.optimizer}):
                dcp.save(parts, checkpoint_id=folder / f"{step}{name}")
                stored = [key for key in keys(folder / f"{step}{name}") if key.startswith("optimizer.")]
                assert stored and not [key for key in stored if KEY in key]
        run.step(x, y)
    check_groups(run.optimizer)
    return result(run, sparsifier) | {"bytes": sparsifier.state_bytes()}


def dcp_resumed(way: str, method: str, folder: Path, step: int) -> dict[str, Any]:
    run = cleared(WAYS[way]())
    sparsifier = attached(run, METHODS[method], travels=True)
    read(run, sparsifier, folder / str(step))
    check_groups(run.optimizer)
    assert sparsifier.step == step
    return trained_on(run, sparsifier, step)


def dcp_without_the_sparsifier(folder: Path) -> str:
    """Model and optimizer are read, and the sparsifier is forgotten."""
    run = ddp()
    attached(run, METHODS["lbc"], travels=True)
    model, optimizer = get_state_dict(run.model, run.optimizer)
    dcp.load({"model": model, "optimizer": optimizer}, checkpoint_id=folder / str(SAVED[1]))
    set_state_dict(run.model, run.optimizer, model_state_dict=model, optim_state_dict=optimizer)
    return said(lambda: run.step(*data()[0]))
