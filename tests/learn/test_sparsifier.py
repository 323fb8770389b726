"""The sparsifier in all the loops that people write."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nmlearn as nm
from nets import batches, convnet, learn, same, sgd, snapshot, train
from nmlearn.errors import AttachError, NMLearnError, PlanError, StateError, ViolationError

STEPS = 16


def attached(method=None, steps=STEPS, optimizer=sgd, model=None):
    model = model or convnet()
    chosen = optimizer(model)
    return model, chosen, nm.Sparsifier(model, method or nm.LBC("2:4")).attach(chosen, steps)


def test_three_lines_in_a_loop():
    sparsifier = learn(nm.LBC("2:4"))
    assert sparsifier.progress == 1.0 and sparsifier.step == 24
    assert [s.density for s in sparsifier.status()] == [0.5] * 3
    assert [s.survivors for s in sparsifier.status()] == [1] * 3
    sparsifier.finalize()
    assert sparsifier.masks() == {} and sparsifier.step == 0


def test_progress_and_survivors_step_by_step():
    model, optimizer, sparsifier = attached(nm.LBC("2:4", start=0.25, end=0.75), steps=8)
    survivors, advances = [], []
    for batch in batches(8):
        train(model, optimizer, [batch])
        survivors.append(sparsifier.status()[0].survivors)
        advances.append(sparsifier.advances)
    # 1 + ceil(5 (1 - (p - 1/4) / (1/2))^3) at p = 1/8 ... 1
    assert survivors == [6, 6, 4, 2, 2, 1, 1, 1]
    assert advances == [0, 0, 3, 6, 6, 9, 9, 9]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, foreach=True),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, foreach=False),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, fused=True),
        lambda p: torch.optim.AdamW(p, 1e-3, fused=True),
        lambda p: torch.optim.AdamW(p, torch.tensor(1e-3), foreach=False),
        lambda p: torch.optim.Adam(p, 1e-3, amsgrad=True, weight_decay=0.1),
        lambda p: torch.optim.Adamax(p, 1e-3, weight_decay=0.1),
        lambda p: torch.optim.ASGD(p, 1e-2),
    ],
)
def test_removed_weights_stay_zero_under_every_optimizer(make):
    model, optimizer, sparsifier = attached(optimizer=lambda m: make(m.parameters()))

    def check(step):
        for name, mask in sparsifier.masks().items():
            assert not model.get_parameter(name).detach()[~mask].any()

    train(model, optimizer, batches(STEPS), after=check)
    sparsifier.finalize()


def test_a_removed_weight_stays_zero_whatever_its_momentum():
    model, optimizer, sparsifier = attached()
    train(model, optimizer, batches(STEPS))
    for p in model.parameters():
        optimizer.state[p]["momentum_buffer"].fill_(100.0)
    train(model, optimizer, batches(1))
    mask = sparsifier.masks()["hidden.weight"]
    assert not model.hidden.weight.detach()[~mask].any() and (model.hidden.weight.abs() > 1).any()


def test_clipping_and_logging_see_no_gradient_of_removed_weights():
    model, optimizer, sparsifier = attached()
    train(model, optimizer, batches(STEPS))
    optimizer.zero_grad()
    x, y = batches(1)[0]
    F.cross_entropy(model(x), y).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    masks, total = sparsifier.masks(), 0.0
    for name, p in model.named_parameters():
        if name in masks:
            assert not p.grad[~masks[name]].any()
        total += float(p.grad.square().sum()) * max(1.0, float(norm)) ** 2
    assert total**0.5 == pytest.approx(float(norm), rel=1e-4)


def test_gradient_accumulation_learns_once_a_step():
    """Two half batches accumulated are the whole batch, in every score."""
    states = []
    for halves in (1, 2):
        model = convnet().double().eval()  # batch norm as in evaluation: no coupling inside the batch
        model, optimizer, sparsifier = attached(model=model)
        for x, y in batches(STEPS, dtype=torch.float64):
            optimizer.zero_grad()
            for part_x, part_y in zip(x.chunk(halves), y.chunk(halves), strict=True):
                (F.cross_entropy(model(part_x), part_y) / halves).backward()
            optimizer.step()
        assert sparsifier.step == STEPS
        states.append(snapshot(model))
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=0, atol=1e-12)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("method", [nm.LBC("2:4"), nm.SRSTE("2:4")])
def test_grad_scaler_skips_do_not_count_and_scores_are_unscaled(fused, method):
    """The same weights with and without the scaler; an overflowing step changes nothing and advances nothing."""
    results = []
    for scaled in (False, True):
        model, optimizer, sparsifier = attached(
            method, optimizer=lambda m: torch.optim.Adam(m.parameters(), 1e-3, fused=fused)
        )
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0)
        for i, (x, y) in enumerate(batches(STEPS)):
            for attempt in range(2 if scaled and i == 5 else 1):
                optimizer.zero_grad()
                loss = F.cross_entropy(model.eval()(x), y)
                scaler.scale(loss).backward()
                overflow = scaled and i == 5 and attempt == 0
                if overflow:
                    model.hidden.weight.grad[0, 0] = torch.inf
                before, step = snapshot(model), sparsifier.step
                scaler.step(optimizer)
                scaler.update()
                if overflow:
                    assert same(before, snapshot(model)) and sparsifier.step == step
        assert sparsifier.step == STEPS
        results.append(snapshot(model))
    for key, value in results[0].items():
        torch.testing.assert_close(value, results[1][key], rtol=1e-4, atol=1e-6)


def test_a_closure_is_learned_from_after_it_ran():
    results = []
    for closure in (False, True):
        model, optimizer, _ = attached()
        for x, y in batches(STEPS):

            def run(x=x, y=y, model=model, optimizer=optimizer):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss

            if closure:
                assert optimizer.step(run) > 0
            else:
                run()
                optimizer.step()
        results.append(snapshot(model))
    assert same(*results)


def test_a_weight_without_gradient_is_left_alone_that_step():
    model, optimizer, sparsifier = attached()
    x, y = batches(1)[0]
    F.cross_entropy(model(x), y).backward()
    model.hidden.weight.grad = None
    before = {t.name: t.state["score"].clone() for t in sparsifier._weights}
    optimizer.step()
    moved = {t.name: not torch.equal(before[t.name], t.state["score"]) for t in sparsifier._weights}
    assert moved == {"conv.weight": True, "grouped.weight": True, "hidden.weight": False}


def test_bf16_autocast_trains():
    model, optimizer, sparsifier = attached()
    for x, y in batches(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    sparsifier.finalize()


def test_attach_refuses():
    model = convnet()
    half = torch.optim.SGD(model.conv.parameters(), 0.1)

    def twice():
        other, optimizer, _ = attached()
        nm.Sparsifier(other, nm.SRSTE("2:4"), {"": None, "hidden": "2:4"}).attach(optimizer, 9)

    cases = [
        (lambda: nm.Sparsifier(model, nm.LBC("2:4")).attach(half, 9), "grouped.weight"),
        (lambda: nm.Sparsifier(model, nm.LBC("2:4")).attach(sgd(model), 0), "total_steps=0"),
        (lambda: attached()[2].attach(sgd(model), 9), "attached already"),
        (twice, "another sparsifier is attached"),
        (lambda: nm.Sparsifier(model, nm.LBC("2:4"), {"": None}).attach(sgd(model), 9), "no sparse weight"),
        (lambda: attached(optimizer=lambda m: torch.optim.LBFGS(m.parameters())), "closure several times"),
    ]
    for case, text in cases:
        with pytest.raises(AttachError) as caught:
            case()
        assert text in str(caught.value) and caught.value.fix


def test_a_failed_attach_leaves_nothing_behind():
    model = convnet()
    sparsifier = nm.Sparsifier(model, nm.Keep("2:4"))
    with pytest.raises(ViolationError, match="nothing to keep"):
        sparsifier.attach(sgd(model), 9)
    assert sparsifier.state_bytes() == 0 and not model.conv.weight._post_accumulate_grad_hooks


def test_detach_leaves_an_ordinary_loop():
    model, optimizer, sparsifier = attached()
    train(model, optimizer, batches(STEPS))
    mask = sparsifier.masks()["conv.weight"]
    sparsifier.detach()
    train(model, optimizer, batches(2))
    assert bool((model.conv.weight[~mask] != 0).any()) and sparsifier.state_bytes() == 0
    assert not model.hidden.weight._post_accumulate_grad_hooks


def test_states_of_something_else_are_refused_by_name():
    model, optimizer, sparsifier = attached()
    train(model, optimizer, batches(3))
    saved = sparsifier.state_dict()
    others = {
        "method": lambda: attached(nm.SRSTE("2:4"))[2],
        "end": lambda: attached(nm.LBC("2:4", end=0.7))[2],
        "momentum": lambda: attached(nm.LBC("2:4", momentum=0.5))[2],
        "total_steps": lambda: attached(steps=99)[2],
        "conv.weight": lambda: nm.Sparsifier(m := convnet(), nm.LBC("2:4"), {"conv": None}).attach(sgd(m), STEPS),
        "hidden.weight": lambda: nm.Sparsifier(m := convnet(), nm.LBC("2:4"), {"hidden": "1:4"}).attach(sgd(m), STEPS),
        "conv.weight keep": lambda: attached(model=convnet(width=32))[2],
    }
    for where, make in others.items():
        with pytest.raises(StateError) as caught:
            make().load_state_dict(saved)
        assert caught.value.where == where
    with pytest.raises(StateError, match="call attach"):
        nm.Sparsifier(model, nm.LBC("2:4")).load_state_dict(saved)


def test_rolling_back_in_the_same_process_after_the_schedule_has_ended():
    model, optimizer, sparsifier = attached()
    train(model, optimizer, batches(3))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    train(model, optimizer, batches(STEPS)[3:])
    first = snapshot(model)
    for part, state in zip((model, optimizer, sparsifier), saved, strict=True):
        part.load_state_dict(state)
    train(model, optimizer, batches(STEPS)[3:])
    assert same(first, snapshot(model))


def test_a_state_without_its_mask_is_refused():
    _, _, sparsifier = attached()
    saved = copy.deepcopy(sparsifier.state_dict())
    del saved["weights"]["conv.weight"]["state"]["keep"]
    with pytest.raises(StateError, match="no mask for this weight"):
        sparsifier.load_state_dict(saved)


def test_a_step_under_autocast_or_tf32_chooses_the_same_masks():
    results = []
    for autocast in (False, True):
        model, optimizer, _ = attached()
        for x, y in batches(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                optimizer.step()
        results.append(snapshot(model))
    assert same(*results)


@pytest.mark.parametrize("write", ["load", "clamp"])
def test_what_others_write_into_a_weight_reaches_the_dense_one(write):
    """SR-STE keeps a dense weight of its own; a loaded or clamped weight must not be lost at the next step."""
    model, optimizer, sparsifier = attached(nm.SRSTE("2:4"), optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.0))
    train(model, optimizer, batches(2))
    kept = sparsifier.masks()["conv.weight"]
    if write == "load":
        model.load_state_dict(convnet(seed=5).state_dict())
    else:
        with torch.no_grad():
            model.conv.weight.clamp_(-0.01, 0.01)
    written = model.conv.weight.detach().clone()
    meant = kept | (written != 0)
    train(model, optimizer, batches(1))
    dense = sparsifier.state_dict()["weights"]["conv.weight"]["state"]["dense"]
    assert torch.equal(dense[meant], written[meant])


class Wrapper(torch.optim.Optimizer):
    """As accelerate's: an optimizer by type, that passes steps on to another."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, closure=None):
        self.optimizer.step(closure)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)


def test_a_wrapped_optimizer_is_looked_into():
    model, optimizer, sparsifier = attached(optimizer=lambda m: Wrapper(sgd(m)))
    train(model, optimizer, batches(STEPS))
    assert sparsifier.step == STEPS
    sparsifier.finalize()


def test_a_removal_that_failed_is_tried_again():
    model, optimizer, sparsifier = attached(nm.LBC("2:4", start=0.25, end=0.25))
    train(model, optimizer, batches(3))
    sparsifier._weights[0].state["score"][0, 0] = torch.nan
    for _ in range(2):
        with pytest.raises(StateError):
            train(model, optimizer, batches(1))


def test_an_average_of_another_model_is_refused():
    sparsifier = learn(nm.LBC("2:4"))
    with pytest.raises(PlanError, match="no such weight"):
        sparsifier.finalize(nn.Linear(4, 4))


def test_errors_survive_pickling():
    error = AttachError(where="a", given=1, wrong="b", fix="c")
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is AttachError and str(twin) == str(error) and isinstance(twin, NMLearnError)


def test_a_model_in_training_is_pickled_without_the_sparsifier():
    model, optimizer, _ = attached()
    train(model, optimizer, batches(2))
    twin = pickle.loads(pickle.dumps(model))
    assert same(snapshot(twin), snapshot(model)) and not twin.hidden.weight._post_accumulate_grad_hooks


def test_nothing_is_done_to_a_mask_that_keeps_everything(monkeypatch):
    """Before the first removal no weight and no gradient is written: the passes cost nothing."""
    from nmlearn.maths import masks

    model, optimizer, sparsifier = attached(nm.LBC("2:4", start=0.5, end=0.9))
    monkeypatch.setattr(masks, "clear_", lambda *_: pytest.fail("a pass over a full mask"))
    train(model, optimizer, batches(STEPS // 2 - 1))
    assert sparsifier.advances == 0
