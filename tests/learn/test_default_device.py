"""Under another default device (``torch.device`` as a context, ``torch.set_default_device``) nothing changes."""

import pytest
import torch

import nmlearn as nm
from calibrated import prepared
from nets import batches, convnet, same, sgd, snapshot, train

STEPS = 8
OPTIONS = {"bimask": {"candidates": 4, "draws": 8}}


def make(name):
    return nm.methods.build(name, "2:4", **OPTIONS.get(name, {}))


def start(method, model):
    prepared(model, method)
    optimizer = sgd(model)
    return optimizer, nm.Sparsifier(model, method).attach(optimizer, STEPS)


def run(method, models, data, folder, device):
    """Half of a training run, its state saved and loaded by another, the other half, and a packed file of it."""
    model, other = models
    with torch.device(device):
        optimizer, sparsifier = start(method, model)
        train(model, optimizer, data[: STEPS // 2])
        resumed, again = start(method, other)
        other.load_state_dict(model.state_dict())
        resumed.load_state_dict(optimizer.state_dict())
        again.load_state_dict(sparsifier.state_dict())
        train(other, resumed, data[STEPS // 2 :])
        kept = again.masks()
        again.finalize()
        path = folder / f"{device}.safetensors"
        nm.save(other, path)
        return snapshot(other), kept, nm.load(path)


METHODS = {name: make(name) for name in nm.METHODS}
METHODS["lbc-explicit"] = nm.LBC("2:4", scores="explicit", score_optimizer="adamw")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_the_same(name, tmp_path):
    data = batches(STEPS)
    results = [run(METHODS[name], (convnet(), convnet()), data, tmp_path, device) for device in ("cpu", "meta")]
    for one, other in zip(*results, strict=True):
        assert same(one, other)
