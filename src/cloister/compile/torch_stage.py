"""Stages that cannot be lowered, as exported programs of their own."""

from __future__ import annotations

import io
import warnings

import torch
from torch import fx

from cloister.compile import ir
from cloister.compile.program import Stage
from cloister.errors import UnsupportedModel

__all__ = ["export_stage"]


def export_stage(module: fx.GraphModule, graph: ir.Graph, stage: Stage, *, dynamic_batch: bool) -> bytes:
    """Cut a stage of `Foreign` operations out of the captured graph.

    Args:
        module: the graph that `graph` was lowered from.
        graph: its lowered form; tensor names are node names.
        stage: the stage; inputs and outputs are float32 tensors.
        dynamic_batch: whether any batch works, or only 1.

    Returns:
        The bytes of a `.pt2` file: takes the stage's inputs, each (N, *shape), and returns a tuple of its outputs.

    Raises:
        UnsupportedModel: torch cannot export the stage by itself.
    """
    try:
        return _export(_cut(module, stage), graph, stage, dynamic_batch)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        foreign = [op for op in stage.ops if isinstance(op, ir.Foreign)]
        problems = [(op.layer or op.module or "(model)", op.operator, reason) for op in foreign]
        raise UnsupportedModel(f"torch.export cannot export a part of the model: {reason}", problems) from error


def _export(part: torch.nn.Module, graph: ir.Graph, stage: Stage, dynamic_batch: bool) -> bytes:
    size = 2 if dynamic_batch else 1
    example = tuple(torch.zeros(size, *graph.tensors[name].shape) for name in stage.inputs)
    dynamic = {0: torch.export.Dim.DYNAMIC}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            part, example, dynamic_shapes=((dynamic,) * len(example),) if dynamic_batch else None
        )
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    return buffer.getvalue()


class _Stage(torch.nn.Module):
    """Takes its inputs as separate arguments, whatever their number."""

    def __init__(self, part: fx.GraphModule) -> None:
        super().__init__()
        self.part = part

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result: tuple[torch.Tensor, ...] = self.part(*inputs)
        return result


def _cut(module: fx.GraphModule, stage: Stage) -> _Stage:
    nodes = {node.name: node for node in module.graph.nodes}
    graph = fx.Graph()
    copied = {nodes[name]: graph.placeholder(f"input_{i}") for i, name in enumerate(stage.inputs)}
    batch = next(iter(copied.values()))

    def copy(node: fx.Node) -> fx.Node:
        if node not in copied:
            if node.target is torch.ops.aten.sym_size.int and node.args[1] == 0:
                # Every tensor has the batch in front: no need to reach back to the model's input for it.
                copied[node] = graph.call_function(torch.ops.aten.sym_size.int, (batch, 0))
            else:
                for arg in node.all_input_nodes:
                    copy(arg)
                copied[node] = graph.node_copy(node, lambda arg: copied[arg])
                # What export notes about the code that made a node is nobody's business on a device.
                copied[node].meta = {}
        return copied[node]

    graph.output(tuple(copy(nodes[name]) for name in stage.outputs))
    return _Stage(fx.GraphModule(module, graph))
