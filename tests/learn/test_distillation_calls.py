"""Distillation around what else happens to a model's calls: compilation, checkpointing, autocast, ranks, wrappers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.utils import counters
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import nmlearn as nm
import taught
from calibration_models import Language, tokens
from nmlearn.errors import AttachError, ConfigError, StateError
from scale_ranks import run_jobs
from taught import LAYERS, MASK, other

# torch's compilation looks at the gradients of whatever it traces.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def teacher():
    return other(Language())


def grads(model, distillation, *args, **kwargs):
    """The gradients of the distillation alone, after a call."""
    model.zero_grad()
    model(*args, **kwargs)
    distillation.loss().backward()
    return {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}


def expected(**weights):
    model = Language()
    with nm.Distillation(teacher(), **weights).attach(model) as distillation:
        return grads(model, distillation, tokens(), MASK)


def close(found, wanted, tolerance=1e-6):
    assert found.keys() == wanted.keys()
    for name, grad in found.items():
        torch.testing.assert_close(grad, wanted[name], rtol=1e-4, atol=tolerance, msg=name)


class Checkpointed(Language):
    """Its layers are computed again in the backward pass, which calls their hooks a second time."""

    reentrant = False

    def forward(self, tokens, attention_mask=None):
        x = self.embed(tokens)
        for layer in self.layers:
            x = checkpoint(layer, x, attention_mask, use_reentrant=self.reentrant)
        return self.head(x)


def test_checkpointed_layers():
    model = Checkpointed()
    distillation = nm.Distillation(teacher(), hidden=LAYERS, logits=1.0).attach(model)
    for _ in range(2):
        close(grads(model, distillation, tokens(), MASK), expected(hidden=LAYERS, logits=1.0))
        with pytest.raises(StateError, match="has given its loss already"):
            distillation.loss()


def test_reentrant_checkpointing():
    """The output of a checkpointed module gets its gradient afterwards; what is inside never does."""
    model = Checkpointed()
    model.reentrant = True
    with nm.Distillation(teacher(), hidden=LAYERS, logits=1.0).attach(model) as distillation:
        close(grads(model, distillation, tokens(), MASK), expected(hidden=LAYERS, logits=1.0))
    distillation = nm.Distillation(teacher(), hidden={"layers.*.up": 1.0}).attach(model)
    model(tokens(), MASK)
    with pytest.raises(ConfigError, match=r"layers.0.up: .*without gradient.*use_reentrant=False"):
        distillation.loss()


@pytest.mark.parametrize("part", [pytest.param("whole", marks=pytest.mark.slow), "layers", "in place"])
def test_a_compiled_model(part):
    """The hooks are traced: no graph is broken, and nothing is compiled again while training goes on."""
    torch._dynamo.reset()
    counters.clear()
    model = Language()
    called = model
    if part == "whole":
        called = torch.compile(model, backend="aot_eager")
    elif part == "in place":
        model.compile(backend="eager")
    else:
        for i, layer in enumerate(model.layers):
            model.layers[i] = torch.compile(layer, backend="eager")
    distillation = nm.Distillation(teacher(), hidden=LAYERS, logits=1.0).attach(called)
    wanted = expected(hidden=LAYERS, logits=1.0)
    for _ in range(2):
        found = grads(called, distillation, tokens(), MASK)
        close({name.replace("_orig_mod.", ""): grad for name, grad in found.items()}, wanted)
    graphs = counters["stats"]["unique_graphs"]
    for _ in range(2):
        grads(called, distillation, tokens(seed=1), MASK)
    assert counters["stats"]["unique_graphs"] == graphs and not counters["graph_break"]
    distillation.remove()
    called(tokens(), MASK)
    assert distillation._watch.last.missing and not distillation._watch.last.outputs, "compiled hooks keep nothing"


def test_a_model_that_was_compiled_before():
    torch._dynamo.reset()
    model = torch.compile(Language(), backend="eager")
    model(tokens())
    distillation = nm.Distillation(teacher(), hidden=LAYERS).attach(model)
    model(tokens())
    with pytest.raises((ConfigError, StateError), match="attach before a compiled model's first call"):
        distillation.loss()


def test_a_compiled_step_with_the_loss_in_it():
    torch._dynamo.reset()
    model = Language()
    distillation = nm.Distillation(teacher(), hidden=LAYERS, logits=1.0).attach(model)

    @torch.compile(backend="eager")
    def loss(ids, mask):
        return model(ids, mask).sum() * 0.0 + distillation.loss()

    for _ in range(2):
        model.zero_grad()
        loss(tokens(), MASK).backward()
        close({name: p.grad for name, p in model.named_parameters()}, expected(hidden=LAYERS, logits=1.0))


def test_a_compiled_teacher():
    compiled = torch.compile(teacher(), backend="eager")
    compiled(tokens())
    inner = teacher()
    inner.compile(backend="eager")
    for given in (compiled, inner):
        model = Language()
        distillation = nm.Distillation(given, hidden=LAYERS, logits=1.0).attach(model)
        close(grads(model, distillation, tokens(), MASK), expected(hidden=LAYERS, logits=1.0))


class Inside(Language):
    """Autocast is turned on inside its forward, as accelerate does it."""

    def forward(self, tokens, attention_mask=None):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(tokens, attention_mask).float()


@pytest.mark.parametrize("weights", [{"hidden": LAYERS}, {"logits": 1.0}], ids=["hidden", "logits"])
@pytest.mark.parametrize("kind", [Language, Inside])
def test_autocast_is_the_students(kind, weights):
    """Of its call, not of the loss's; a teacher that is the same gives no loss at all, and sums are float32."""
    model, types = kind(), []
    distillation = nm.Distillation("copy", **weights).attach(model)
    distillation.teacher.layers[2].down.register_forward_hook(lambda m, args, output: types.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=kind is Language):
        model(tokens(), MASK)
    loss = distillation.loss()
    assert types == [torch.bfloat16] and loss == 0 and loss.dtype == torch.float32
    model(tokens(), MASK)
    with torch.autocast("cpu", torch.bfloat16):
        loss = distillation.loss()
    assert types[1] == (torch.bfloat16 if kind is Inside else torch.float32) and loss == 0


def test_accumulated_parts_are_the_whole():
    model = Language()
    distillation = nm.Distillation(teacher(), hidden={"layers.0": 1.0}, logits=1.0).attach(model)
    for part in tokens(4).chunk(2):
        model(part)
        (distillation.loss() / 2).backward()
    logits = torch.cat([model.head.weight.grad.flatten(), model.head.bias.grad])
    with nm.Distillation(teacher(), logits=1.0).attach(whole := Language()) as distillation:
        grads(whole, distillation, tokens(4))
    torch.testing.assert_close(logits, torch.cat([whole.head.weight.grad.flatten(), whole.head.bias.grad]))


@pytest.mark.parametrize("attach", ["before", "after"])
def test_ddp(attach):
    """One process is a process group too; the names have no prefix, and the wrapper may come later."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model, distillation = Language(), nm.Distillation(teacher(), hidden=LAYERS, logits=1.0)
        if attach == "before":
            distillation.attach(model)
        wrapped = DistributedDataParallel(model)
        if attach == "after":
            distillation.attach(wrapped)
        close(grads(wrapped, distillation, tokens(), MASK), expected(hidden=LAYERS, logits=1.0))
    finally:
        dist.destroy_process_group()


@pytest.mark.distributed
def test_two_ranks_are_one_process(tmp_path):
    """DDP and FSDP2, which is sharded after attach where the model is copied."""
    pairs = [("ddp", "copy"), ("ddp", "other"), ("fsdp", "copy"), ("fsdp", "other")]
    jobs = [(taught.trained, *pair) for pair in pairs]
    for (_, teacher), of_ranks in zip(pairs, run_jobs(2, jobs, tmp_path), strict=True):
        close(of_ranks[0], of_ranks[1], 0.0)
        close(of_ranks[0], taught.trained("", teacher))


def test_a_sharded_model_is_not_copied():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = Language()
        fully_shard(model)
        with pytest.raises(AttachError, match="its weights are sharded"):
            nm.Distillation("copy", logits=1.0).attach(model)
    finally:
        dist.destroy_process_group()


def test_replicas_of_data_parallel_are_refused():
    model = Language()
    distillation = nm.Distillation("copy", hidden=LAYERS).attach(nn.DataParallel(model))
    replica = model._replicate_for_data_parallel()
    with pytest.raises(AttachError, match="train with DistributedDataParallel"):
        replica(tokens())
    assert distillation.last is None


class Redirected(nn.Module):
    """Its forward is called twice: by a wrapper with a batch, and in there with inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Language()

    def forward(self, batch):
        return self(batch["ids"]).sum() if isinstance(batch, dict) else self.net(batch)


def test_the_innermost_of_nested_calls():
    model = Redirected()
    distillation = nm.Distillation(teacher(), hidden=LAYERS, logits=1.0).attach(model)
    model({"ids": tokens()})
    found = distillation.loss()
    with pytest.raises(StateError, match="has given its loss already"):
        distillation.loss()
    model(tokens())
    assert torch.equal(found, distillation.loss())


class Several(nn.Module):
    """A layer that is called twice, with outputs of other kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gives = Tuple(), nn.Linear(4, 4)

    def forward(self, x):
        first, _ = self.layer(x)
        return (first.sum(), self.layer(first)[0], self.gives(first))


class Tuple(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, x):
        return super().forward(x), None


def test_kinds_of_outputs():
    """Of a tuple the first tensor; of logits the first with classes; of several calls the last."""
    model = Several().double()
    twin = copy.deepcopy(model)
    twin.layer.weight.data += 0.1
    distillation = nm.Distillation(twin, hidden={"layer": 1.0}, logits=1.0, temperature=1.0).attach(model)
    x = torch.randn(3, 4, dtype=torch.float64)
    model(x)
    found = distillation.loss()
    ours, theirs = (net.layer(net.layer(x)[0])[0] for net in (model, twin))
    p, q = theirs.softmax(-1), ours.softmax(-1)
    error = (ours - theirs).square().mean() / theirs.var(correction=0)
    torch.testing.assert_close(found, error + (p * (p / q).log()).sum(-1).mean())


def test_hooks_of_the_models_own():
    """What changes the model's arguments is not applied twice to a copy; a teacher of one's own has its own."""
    model = Language()
    model.register_forward_pre_hook(lambda m, args: ((args[0] + 1) % 32,))
    distillation = nm.Distillation("copy", hidden=LAYERS).attach(model)
    model(tokens())
    assert distillation.loss() == 0
    assert len(model._forward_pre_hooks) > 1 and not distillation.teacher._forward_pre_hooks


def test_exported_graphs_do_without():
    model = Language()
    distillation = nm.Distillation("copy", hidden=LAYERS).attach(model)
    torch.export.export(model, (tokens(),))
    with pytest.raises(StateError, match="not called since attach"):
        distillation.loss()


def test_torchs_own_encoder():
    """Its fast path would compute whole layers without calling what is inside, and drop padded tokens."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)
    distillation = nm.Distillation("copy", hidden={"layers.*": 1.0, "*.linear2": 1.0}).attach(model)
    model(torch.randn(2, 5, 16), src_key_padding_mask=torch.tensor([[False] * 5, [False] * 3 + [True] * 2]))
    assert distillation.loss() < 1e-10, "in evaluation mode its attention adds in another order"
