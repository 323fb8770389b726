"""Batch norm, residual addition and activation after a packed layer, found in a block's own code and folded into it.

A block is the module whose forward calls the layer. Its forward is traced (torch.fx) with all its children as leaves.
If that fails, or if the traced code computes something else on what the block was called with, the block does not
change and only the layer itself is replaced.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from nmlearn.acceleration.observing import Dense, hooked
from nmlearn.maths.pattern import Pattern
from nmlearn.model.example import tensors
from nmlearn.packed.kernels.layouts import Layout
from nmlearn.packed.modules import Packed, PackedConv2d, PackedLinear

_FUNCTIONS: dict[Any, str] = {F.relu: "relu", torch.relu: "relu", F.gelu: "gelu", F.silu: "silu", torch.relu_: "relu"}
_MODULES: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.SiLU: "silu"}
_METHODS = {"relu": "relu", "relu_": "relu"}
_ADDITIONS = (operator.add, operator.iadd, torch.add)


@dataclass(frozen=True)
class Choice:
    """A dense layer to pack."""

    layer: Dense
    pattern: Pattern
    layout: Layout
    name: str
    int8: bool = False


def pack(choice: Choice, norm: nn.BatchNorm2d | None = None, activation: str = "none") -> Packed:
    """The packed layer, with the batch norm that follows it folded in."""
    layer = choice.layer
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if norm is not None:
        weight, bias = folded(weight, bias, norm)
    same: dict[str, Any] = {"layout": choice.layout, "activation": activation, "name": choice.name, "int8": choice.int8}
    if isinstance(layer, nn.Linear):
        return PackedLinear(weight, bias, choice.pattern, **same).eval()
    geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups}
    packed = PackedConv2d(weight, bias, choice.pattern, **geometry, **same)  # type: ignore[arg-type]
    packed.folded = norm is not None
    return packed.eval()


def folded(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the following batch norm folded in (inference form)."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = (0 if bias is None else bias.double()) - norm.running_mean.double()
    new_bias = shift * scale + (0 if norm.bias is None else norm.bias.detach().double())
    new_weight = weight.double() * scale.view(-1, 1, 1, 1)
    return new_weight.to(weight.dtype), new_bias.to(weight.dtype)


def rewritten(block: nn.Module, choices: Mapping[str, Choice], inputs: tuple[Any, ...]) -> fx.GraphModule | None:
    """The block with these children packed and what follows them folded in.

    None where its code cannot be traced, where the trace is of another call than this one, and where state or hooks
    would be lost.

    Args:
        block: is not changed.
        choices: by the child's name in the block.
        inputs: what the block was called with, by position, each a tensor or a list of tensors; a run on them gives the
            shapes of additions.
    """
    traced = _traced(block, choices, inputs)
    if traced is None:
        return None
    graph, shapes = traced
    modules = dict(block.named_modules())
    packed: dict[str, nn.Module] = {}
    for node in list(graph.nodes):
        if node.op != "call_module" or node.target not in choices or node.target in packed:
            continue
        if sum(n.op == "call_module" and n.target == node.target for n in graph.nodes) > 1 or len(node.args) != 1:
            packed[node.target] = pack(choices[node.target])
            continue
        packed[node.target] = _fold(graph, node, choices[node.target], modules, shapes)
    graph.lint()
    kept = {n.target: packed.get(n.target, modules.get(n.target)) for n in graph.nodes if n.op == "call_module"}
    kept |= {n.target: operator.attrgetter(n.target)(block) for n in graph.nodes if n.op == "get_attr"}
    return fx.GraphModule(kept, graph, type(block).__name__).eval()


def drops_reads(block: nn.Module, child: str, inputs: tuple[Any, ...]) -> bool:
    """Whether the block's traced code calls a layer only, where its own code reads the weight too, as for its type."""
    return _traced(block, [child], inputs) is not None


def _traced(
    block: nn.Module, children: Container[str], inputs: tuple[Any, ...]
) -> tuple[fx.Graph, Mapping[fx.Node, Any]] | None:
    """The block's code with the shapes of its values; None where it cannot stand for the block."""
    graph = None if hooked(block) else _trace(block)
    if graph is None or _loses_state(block, graph) or _reads(graph, children) or not _takes(graph, len(inputs)):
        return None
    shapes = _shapes(block, graph, inputs)
    return None if shapes is None else (graph, shapes)


def _fold(graph: fx.Graph, node: fx.Node, choice: Choice, modules: Mapping[str, nn.Module], shapes: Any) -> Packed:
    """Pack the layer of a node, and move the node to the end of what is folded into it."""
    chain, norm, residual, activation = [node], None, None, "none"
    after = _only_user(chain[-1])
    if after is not None and isinstance(choice.layer, nn.Conv2d) and _is_norm(after, modules):
        norm = modules[after.target]  # type: ignore[index]
        chain.append(after)
        after = _only_user(after)
    other = _addend(after, chain[-1], shapes)
    if after is not None and other is not None:
        residual = other
        chain.append(after)
        after = _only_user(after)
    found = _activation(after, modules)
    if after is not None and found:
        activation = found
        chain.append(after)
    layer = pack(choice, norm, activation)  # type: ignore[arg-type]
    if len(chain) > 1:
        with graph.inserting_after(chain[-1]):
            args = (*node.args, *([] if residual is None else [residual]))
            new = graph.call_module(str(node.target), args)
        chain[-1].replace_all_uses_with(new)
        for old in reversed(chain):
            graph.erase_node(old)
    return layer


def _trace(block: nn.Module) -> fx.Graph | None:
    class Leaves(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return True

    try:
        graph = Leaves().trace(block)
    except Exception:  # forward does something that torch.fx cannot trace: the block does not change
        return None
    for node in list(graph.nodes):
        node.type = None  # string annotations cannot be pickled
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    return graph


def _loses_state(block: nn.Module, graph: fx.Graph) -> bool:
    """Whether the block has state that its code does not use: a GraphModule would not have it, nor a saved model."""
    used = tuple(f"{node.target}." for node in graph.nodes if node.op in ("call_module", "get_attr"))
    return not all(f"{name}.".startswith(used) for name in block.state_dict())


def _reads(graph: fx.Graph, children: Container[str]) -> bool:
    """Whether the block's code reads the weight of a layer to pack."""
    return any(n.op == "get_attr" and str(n.target).rpartition(".")[0] in children for n in graph.nodes)


def _takes(graph: fx.Graph, count: int) -> bool:
    """Whether the traced code takes so many tensors. Arguments that were left out, it takes for tensors too."""
    names = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
    return len(names) == count and not any(name.startswith("*") for name in names)


def _shapes(block: nn.Module, graph: fx.Graph, inputs: tuple[Any, ...]) -> dict[fx.Node, Any] | None:
    """The shape of each node's output on these inputs and on a batch twice as large; None if it is not a tensor.

    None for all where the code does not compute what the block does: it depends on what a trace does not see.
    """
    try:
        with torch.inference_mode():
            shapes, out = _run(block, graph, _each(torch.clone, inputs))
            expected = tensors(block(*_each(torch.clone, inputs)))
            if len(out) != len(expected) or not all(map(torch.equal, out, expected)):
                return None
    except Exception:
        return None
    try:
        with torch.inference_mode():
            twice, _ = _run(block, graph, _each(lambda x: torch.cat([x, x]) if x.dim() else x, inputs))
    except Exception:  # for one size of batch: additions are of equal shapes whenever the block is called
        twice = shapes
    return {node: shape and (shape, twice[node]) for node, shape in shapes.items()}


def _each(change: Callable[[Tensor], Tensor], inputs: Sequence[Any]) -> list[Any]:
    """The inputs with each tensor changed."""
    return [change(x) if isinstance(x, Tensor) else _each(change, x) for x in inputs]


def _run(block: nn.Module, graph: fx.Graph, inputs: list[Any]) -> tuple[dict[fx.Node, Any], list[Tensor]]:
    """The shape of each node's output, and all tensors that the code returns."""
    shapes: dict[fx.Node, Any] = {}

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            shapes[n] = tuple(value.shape) if isinstance(value, Tensor) else None
            return value

    out = Shapes(fx.GraphModule(block, graph)).run(*inputs)
    return shapes, tensors(out)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_norm(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    if type(module) is not nn.BatchNorm2d or hooked(module):
        return False
    return module.running_mean is not None and not module.training


def _addend(node: fx.Node | None, own: fx.Node, shapes: Mapping[fx.Node, Any]) -> fx.Node | None:
    """The other operand of an addition of two tensors of equal shape."""
    if (
        node is None
        or node.op != "call_function"
        or node.target not in _ADDITIONS
        or node.kwargs
        or len(node.args) != 2
    ):
        return None
    other = node.args[1] if node.args[0] is own else node.args[0]
    if not isinstance(other, fx.Node) or other is own or shapes.get(other) is None:
        return None
    return other if shapes.get(other) == shapes.get(own) else None


def _activation(node: fx.Node | None, modules: Mapping[str, nn.Module]) -> Literal["relu", "gelu", "silu"] | None:
    name: Any = None
    if node is None:
        return None
    if node.op == "call_module":
        module = modules[str(node.target)]
        if hooked(module):
            return None
        if isinstance(module, nn.GELU):
            name = "gelu" if module.approximate == "none" else None
        else:
            name = _MODULES.get(type(module))
    elif node.op == "call_function" and node.kwargs.get("approximate", "none") == "none":
        name = _FUNCTIONS.get(node.target)
    elif node.op == "call_method":
        name = _METHODS.get(str(node.target))
    return name  # type: ignore[no-any-return]
