"""What the nodes of a graph are worth while it is lowered: tensors, views of int8 tensors, constants.

Every node's value is known as an IR tensor, or as an int8 tensor that is looked at as float32 (a `View`: the result of
a dequantize node, and of reshapes and max pools of one).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from typing import Any

import numpy as np
import torch
from torch import fx

from cloister.compile import ir
from cloister.compile.operators import (
    DEQUANTIZE_CHANNELS,
    QUANTIZE,
    activation_chain,
    activation_range,
)

__all__ = ["NO_CLAMP", "CannotLower", "Result", "Values", "View", "clamp_again", "quantized_clamp"]

NO_CLAMP = (-math.inf, math.inf)


class CannotLower(Exception):
    """Why a node becomes `Foreign`."""


@dataclasses.dataclass(frozen=True)
class View:
    """The int8 tensor of this name, looked at as float32."""

    name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """Where an operation's result goes: its tensor, its clamp, and the node that stands for it."""

    tensor: ir.Tensor
    clamp: ir.Clamp
    node: fx.Node


class Values:
    """The values of the nodes that were walked over, and the operations that make them.

    Attributes:
        module: the graph.
        tensors: the IR tensors so far, by name.
        ops: the operations so far.
        values: what each node is worth.
        constants: values of nodes that depend on no input.
        absorbed: nodes that an operation before them does, too.
        batch: the number of images, 1 or a symbol, as text.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.tensors: dict[str, ir.Tensor] = {}
        self.ops: list[ir.Op] = []
        self.values: dict[fx.Node, ir.Tensor | View] = {}
        self.constants: dict[Any, Any] = {}
        self.absorbed: set[fx.Node] = set()
        source = next(node for node in module.graph.nodes if node.op == "placeholder")
        self.batch = str(source.meta["val"].shape[0])

    # ---- values ----------------------------------------------------------------------------------------------

    def fold_constant(self, node: fx.Node) -> bool:
        """Evaluate what depends on no input: weights, scales, and what is computed of them."""
        if node.op == "get_attr":
            self.constants[node] = operator.attrgetter(str(node.target))(self.module)
            return True
        if node.target is DEQUANTIZE_CHANNELS:
            return True  # read by `_weights`, which wants the integers
        arguments = node.all_input_nodes
        if node.op != "call_function" or not arguments or any(a not in self.constants for a in arguments):
            return False
        values = fx.node.map_arg((node.args, node.kwargs), lambda a: self.constants[a])
        with torch.no_grad():
            self.constants[node] = node.target(*values[0], **values[1])  # type: ignore[operator]
        return True

    def layer(self, node: fx.Node) -> str | None:
        """The module with parameters that a node belongs to."""
        name: str | None = node.meta.get("custom", {}).get("layer")
        return name

    def reads(self, node: fx.Node) -> tuple[str, ...]:
        """Names of the parameters that a node reads."""
        names: tuple[str, ...] = node.meta.get("custom", {}).get("reads", ())
        return names

    def define(self, tensor: ir.Tensor) -> ir.Tensor:
        """Take a tensor into the graph."""
        self.tensors[tensor.name] = tensor
        return tensor

    def float_tensor(self, node: fx.Node) -> ir.Tensor:
        """A float32 tensor for a node's result, not yet in the graph."""
        return ir.Tensor(name=node.name, dtype="float32", shape=self.shape(node))

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape without the batch; refuses what is not (batch, fixed sizes) of float32."""
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            raise CannotLower("its result is not a single tensor")
        if value.dtype != torch.float32:
            raise CannotLower(f"its result is {value.dtype}, not float32")
        if value.dim() < 2 or str(value.shape[0]) != self.batch:
            raise CannotLower(f"its result {tuple(value.shape)} has no batch axis in front")
        if not all(isinstance(size, int) for size in value.shape[1:]):
            raise CannotLower(f"its result's shape {tuple(value.shape)} depends on the batch")
        return tuple(int(size) for size in value.shape[1:])

    def value(self, node: Any) -> ir.Tensor | View:
        """What a node is worth; refuses what is not known."""
        if not isinstance(node, fx.Node):
            raise CannotLower(f"expected a tensor, but got {node!r}")
        if node not in self.values:
            raise CannotLower(f"its input `{node.name}` is not a tensor that can be lowered")
        return self.values[node]

    def as_float(self, node: Any) -> ir.Tensor:
        """The node's value as a float32 tensor; converts a view at most once."""
        value = self.value(node)
        if isinstance(value, ir.Tensor):
            return value
        if node.name in self.tensors and self.tensors[node.name].dtype == "float32":
            return self.tensors[node.name]
        source = self.tensors[value.name]
        result = self.define(ir.Tensor(name=node.name, dtype="float32", shape=source.shape))
        self.copy(source, result, source.scale, NO_CLAMP)
        return result

    def as_int8(self, node: Any) -> ir.Tensor | None:
        """The int8 tensor behind the node, or None if it is float32."""
        value = self.value(node)
        return self.tensors[value.name] if isinstance(value, View) else None

    def operands(self, node: fx.Node, arguments: Any) -> list[ir.Tensor]:
        """int8 tensors if all arguments are, and the result is quantized again; float32 tensors otherwise."""
        found = [tensor for a in arguments if (tensor := self.as_int8(a)) is not None]
        after = _only_user([node, *activation_chain(node)][-1])
        if len(found) == len(arguments) and after is not None and after.target is QUANTIZE:
            return found
        return [self.as_float(a) for a in arguments]

    # ---- results ---------------------------------------------------------------------------------------------

    def result(self, node: fx.Node, *, int8: bool) -> Result:
        """Follow the chain operation → activation → quantize as far as one operation can do it all.

        `int8`: the inputs are int8, so that a quantized result is possible.
        """
        chain = activation_chain(node)
        last = chain[-1] if chain else node
        clamp = functools.reduce(clamp_again, map(activation_range, chain), NO_CLAMP)
        self.absorbed.update(chain)
        user = _only_user(last)
        if int8 and user is not None and user.target is QUANTIZE:
            tensor = self.quantized_tensor(user, self.shape(node))
            self.absorbed.add(user)
            return Result(tensor=tensor, clamp=quantized_clamp(clamp, tensor), node=user)
        tensor = ir.Tensor(name=last.name, dtype="float32", shape=self.shape(node))
        return Result(tensor=tensor, clamp=clamp, node=last)

    def quantized_tensor(self, node: fx.Node, shape: tuple[int, ...]) -> ir.Tensor:
        """The result of a quantize node, named after what it quantizes."""
        arguments: Any = node.args
        scale, zero_point = (self.constants.get(arg, arg) for arg in arguments[1:3])
        name = f"{arguments[0].name}.int8"
        return ir.Tensor(
            name=node.name if name in self.tensors else name,
            dtype="int8",
            shape=shape,
            scale=float(scale),
            zero_point=int(zero_point),
        )

    def finish(self, result: Result) -> None:
        """Take an operation's result into the graph."""
        self.values[result.node] = self.define(result.tensor)

    def copy(self, source: ir.Tensor, result: ir.Tensor, multiplier: float, clamp: ir.Clamp) -> None:
        """Append a copy of the whole tensor, which converts and clamps."""
        self.ops.append(
            ir.Copy(
                inputs=(source.name,),
                output=result.name,
                outer=1,
                inner=source.n_elements,
                out_stride=source.n_elements,
                out_offset=0,
                multiplier=multiplier,
                clamp=clamp,
            )
        )


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def clamp_again(first: ir.Clamp, second: ir.Clamp) -> ir.Clamp:
    """One clamp that does what the first and then the second do."""
    low, high = (min(max(bound, second[0]), second[1]) for bound in first)
    return low, high


def quantized_clamp(clamp: ir.Clamp, tensor: ir.Tensor) -> ir.Clamp:
    """Bounds of an activation in units of its quantized result: quantizing is monotonic, so they commute."""
    return tuple(_quantized_bound(bound, tensor) for bound in clamp)  # type: ignore[return-value]


def _quantized_bound(bound: float, tensor: ir.Tensor) -> int:
    if math.isinf(bound):
        return -128 if bound < 0 else 127
    scaled = np.float32(bound) * np.float32(1.0 / tensor.scale)
    return int(np.clip(np.rint(scaled) + tensor.zero_point, -128, 127))
