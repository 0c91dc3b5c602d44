"""The table of a model's layers: what each is, and how much it holds and computes."""

from __future__ import annotations

import math

import msgspec

from cloister.compile import ir
from cloister.compile.slicing import Block

__all__ = ["Layer", "layer_table"]


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One layer with parameters.

    Attributes:
        name: its PyTorch name.
        op: `conv`, `linear`, `affine` (a batch norm by itself), or the exported operator if it cannot be lowered.
        input_shape: without the batch axis, at its first use.
        output_shape: likewise.
        n_units: output units (channels, neurons); 0 if it cannot be lowered.
        weight_bytes: bytes of its weights as they are in a program; 0 if it cannot be lowered.
        multiply_adds: for one image, over all uses.
        uses: how often the model uses it.
    """

    name: str
    op: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    n_units: int
    weight_bytes: int
    multiply_adds: int
    uses: int


def layer_table(graph: ir.Graph) -> tuple[Layer, ...]:
    """The layers of a graph in the order of their first use."""
    return tuple(_layer(graph, name) for name in graph.layers())


def _layer(graph: ir.Graph, name: str) -> Layer:
    uses = [op for op in graph.ops if op.layer == name]
    first = uses[0]
    source, result = graph.tensors[first.inputs[0]], graph.tensors[first.output]
    return Layer(
        name=name,
        op=_kind(first, source),
        input_shape=source.shape,
        output_shape=result.shape,
        n_units=_n_units(first),
        weight_bytes=_weight_bytes(first),
        multiply_adds=sum(_multiply_adds(graph, op) for op in uses),
        uses=len(uses),
    )


def _kind(op: ir.Op, source: ir.Tensor) -> str:
    if isinstance(op, ir.Conv):
        return "conv" if len(source.shape) == 3 else "linear"
    return "affine" if isinstance(op, ir.Affine) else getattr(op, "operator", "other")


def _n_units(op: ir.Op) -> int:
    if isinstance(op, ir.Conv):
        return len(op.weight)
    return len(op.slope) if isinstance(op, ir.Affine) else 0


def _weight_bytes(op: ir.Op) -> int:
    return Block(layer=op.layer or op.output, op=op).n_bytes if isinstance(op, ir.Conv | ir.Affine) else 0


def _multiply_adds(graph: ir.Graph, op: ir.Op) -> int:
    result = graph.tensors[op.output]
    if isinstance(op, ir.Conv):
        return result.n_elements * math.prod(op.weight.shape[1:])
    return result.n_elements if isinstance(op, ir.Affine) else 0
