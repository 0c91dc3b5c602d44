"""From a captured (and perhaps quantized) graph to operations of the intermediate representation.

The graph is walked once in its order. Every node's value is known as an IR tensor, or as an int8 tensor that is
looked at as float32 (a `_View`: the result of a dequantize node, and of reshapes and max pools of one). An operation
whose inputs are views and whose result is quantized again becomes an int8 operation; any other becomes a float32
one, with copies that convert. What has no counterpart becomes `Foreign`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from cloister.compile import ir
from cloister.compile.capture import affine
from cloister.compile.operators import (
    ACTIVATIONS,
    ADD,
    CAT,
    CONVOLUTIONS,
    DEQUANTIZE,
    DEQUANTIZE_CHANNELS,
    LINEAR,
    QUANTIZE,
    RESHAPES,
    activation_chain,
    activation_range,
)

__all__ = ["lower"]

aten = torch.ops.aten
_NO_CLAMP = (-math.inf, math.inf)
_MAX_BIAS = 2**30 - 1
_MAX_TAPS = 65536


class _CannotLower(Exception):
    """Why a node becomes `Foreign`."""


@dataclasses.dataclass(frozen=True)
class _View:
    """The int8 tensor of this name, looked at as float32."""

    name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Result:
    """Where an operation's result goes: its tensor, its clamp, and the node that stands for it."""

    tensor: ir.Tensor
    clamp: ir.Clamp
    node: fx.Node


def lower(module: fx.GraphModule) -> ir.Graph:
    """Lower a graph.

    Args:
        module: what `capture` or `quantize` gave.

    Returns:
        The graph; `Foreign` operations stand for what cannot be lowered.
    """
    return _Lowering(module).run()


class _Lowering:
    """One walk over a graph."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.tensors: dict[str, ir.Tensor] = {}
        self.ops: list[ir.Op] = []
        self.values: dict[fx.Node, ir.Tensor | _View] = {}
        self.constants: dict[Any, Any] = {}
        self.absorbed: set[fx.Node] = set()
        self.rules: dict[Any, Callable[[fx.Node], None]] = {
            QUANTIZE: self._quantize,
            DEQUANTIZE: self._dequantize,
            LINEAR: self._linear,
            ADD: self._add,
            CAT: self._concat,
            affine: self._affine,
            aten.max_pool2d.default: self._max_pool,
            aten.avg_pool2d.default: self._avg_pool,
            aten.adaptive_avg_pool2d.default: self._adaptive_pool,
            aten.mean.dim: self._mean,
            aten.softmax.int: self._softmax,
            aten._softmax.default: self._softmax,
            **dict.fromkeys(CONVOLUTIONS, self._conv),
            **dict.fromkeys(ACTIVATIONS, self._activation),
            **dict.fromkeys(RESHAPES, self._reshape),
        }

    def run(self) -> ir.Graph:
        source, output = "", ""
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                source = self._define(self._float_tensor(node)).name
                self.values[node] = self.tensors[source]
            elif node.op == "output":
                result = node.args[0][0] if isinstance(node.args[0], tuple | list) else node.args[0]
                output = self._as_float(result).name
            elif not self._fold_constant(node) and node not in self.absorbed:
                self._lower_node(node)
        return ir.Graph(tensors=self.tensors, ops=tuple(self.ops), input=source, output=output)

    # ---- values ----------------------------------------------------------------------------------------------

    def _fold_constant(self, node: fx.Node) -> bool:
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

    def _lower_node(self, node: fx.Node) -> None:
        rule = self.rules.get(node.target)
        kept = len(self.ops), dict(self.tensors), dict(self.values), set(self.absorbed)
        try:
            if rule is None:
                raise _CannotLower("no such operation inside")
            rule(node)
        except _CannotLower as reason:
            del self.ops[kept[0] :]
            self.tensors, self.values, self.absorbed = kept[1:]
            self._foreign(node, str(reason))

    def _define(self, tensor: ir.Tensor) -> ir.Tensor:
        self.tensors[tensor.name] = tensor
        return tensor

    def _float_tensor(self, node: fx.Node) -> ir.Tensor:
        return ir.Tensor(name=node.name, dtype="float32", shape=self._shape(node))

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape without the batch; refuses what is not (batch, fixed sizes) of float32."""
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            raise _CannotLower("its result is not a single tensor")
        if value.dtype != torch.float32:
            raise _CannotLower(f"its result is {value.dtype}, not float32")
        if value.dim() < 2 or (isinstance(value.shape[0], int) and value.shape[0] != 1):
            raise _CannotLower(f"its result {tuple(value.shape)} has no batch axis in front")
        if not all(isinstance(size, int) for size in value.shape[1:]):
            raise _CannotLower(f"its result's shape {tuple(value.shape)} depends on the batch")
        return tuple(int(size) for size in value.shape[1:])

    def _value(self, node: Any) -> ir.Tensor | _View:
        if not isinstance(node, fx.Node):
            raise _CannotLower(f"expected a tensor, but got {node!r}")
        if node not in self.values:
            raise _CannotLower(f"its input `{node.name}` is not a tensor that can be lowered")
        return self.values[node]

    def _as_float(self, node: Any) -> ir.Tensor:
        """The node's value as a float32 tensor; converts a view at most once."""
        value = self._value(node)
        if isinstance(value, ir.Tensor):
            return value
        if node.name in self.tensors and self.tensors[node.name].dtype == "float32":
            return self.tensors[node.name]
        source = self.tensors[value.name]
        result = self._define(ir.Tensor(name=node.name, dtype="float32", shape=source.shape))
        self._copy(source, result, source.scale, _NO_CLAMP)
        return result

    def _as_int8(self, node: Any) -> ir.Tensor | None:
        """The int8 tensor behind the node, or None if it is float32."""
        value = self._value(node)
        return self.tensors[value.name] if isinstance(value, _View) else None

    def _operands(self, node: fx.Node, arguments: Any) -> list[ir.Tensor]:
        """int8 tensors if all arguments are, and the result is quantized again; float32 tensors otherwise."""
        found = [tensor for a in arguments if (tensor := self._as_int8(a)) is not None]
        after = _only_user([node, *activation_chain(node)][-1])
        if len(found) == len(arguments) and after is not None and after.target is QUANTIZE:
            return found
        return [self._as_float(a) for a in arguments]

    # ---- results ---------------------------------------------------------------------------------------------

    def _result(self, node: fx.Node, *, int8: bool) -> _Result:
        """Follow the chain operation → activation → quantize as far as one operation can do it all.

        `int8`: the inputs are int8, so that a quantized result is possible.
        """
        chain = activation_chain(node)
        last = chain[-1] if chain else node
        clamp = functools.reduce(_clamp_again, map(activation_range, chain), _NO_CLAMP)
        self.absorbed.update(chain)
        user = _only_user(last)
        if int8 and user is not None and user.target is QUANTIZE:
            tensor = self._quantized_tensor(user, self._shape(node))
            self.absorbed.add(user)
            return _Result(tensor=tensor, clamp=_quantized_clamp(clamp, tensor), node=user)
        tensor = ir.Tensor(name=last.name, dtype="float32", shape=self._shape(node))
        return _Result(tensor=tensor, clamp=clamp, node=last)

    def _quantized_tensor(self, node: fx.Node, shape: tuple[int, ...]) -> ir.Tensor:
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

    def _finish(self, result: _Result) -> None:
        self.values[result.node] = self._define(result.tensor)

    def _copy(self, source: ir.Tensor, result: ir.Tensor, multiplier: float, clamp: ir.Clamp) -> None:
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

    # ---- scales ----------------------------------------------------------------------------------------------

    def _quantize(self, node: fx.Node) -> None:
        source = self.tensors[self._value(node.args[0]).name]
        result = self._quantized_tensor(node, source.shape)
        if (source.dtype, source.scale, source.zero_point) == (result.dtype, result.scale, result.zero_point):
            self.values[node] = source
            return
        self.values[node] = self._define(result)
        multiplier = source.scale / result.scale if source.dtype == "int8" else 1.0 / result.scale
        self._copy(source, result, multiplier, (-128, 127))

    def _dequantize(self, node: fx.Node) -> None:
        self.values[node] = _View(self._value(node.args[0]).name)

    def _activation(self, node: fx.Node) -> None:
        """Activations that no operation before them takes along."""
        (source,) = self._operands(node, node.args[:1])
        result = self._result(node, int8=source.dtype == "int8")
        clamp = activation_range(node)
        if result.tensor.dtype == "int8":
            clamp = _quantized_clamp(clamp, result.tensor)
        self._finish(result)
        ratio = source.scale / result.tensor.scale if source.dtype == "int8" else 1.0
        self._copy(source, result.tensor, ratio, _clamp_again(clamp, result.clamp))

    # ---- layers ----------------------------------------------------------------------------------------------

    def _conv(self, node: fx.Node) -> None:
        stride, padding, dilation, groups = _arguments(node, 3, [(1, 1), (0, 0), (1, 1), 1])
        weight = self._weights(node.args[1])[0]
        stride, dilation = _pair(stride), _pair(dilation)
        if isinstance(padding, str):
            reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            padding = (reach[0] // 2, reach[1] // 2) if padding == "same" else (0, 0)
        self._weighted(node, weight.transpose(0, 2, 3, 1), stride, _pair(padding), dilation, int(groups))

    def _linear(self, node: fx.Node) -> None:
        if len(self._shape(node)) == 3:
            raise _CannotLower("a linear layer over the last axis of an image")
        weight = self._weights(node.args[1])[0]
        self._weighted(node, weight[:, None, None, :], (1, 1), (0, 0), (1, 1), 1)

    def _weighted(
        self, node: fx.Node, weight: Any, stride: ir.Pair, padding: ir.Pair, dilation: ir.Pair, groups: int
    ) -> None:
        """Append a convolution or linear layer; weight is (O, KH, KW, I / groups)."""
        if math.prod(weight.shape[1:]) > _MAX_TAPS:
            raise _CannotLower(f"more than {_MAX_TAPS} inputs to one output unit")
        scales = self._weights(node.args[1])[1]
        source = self._as_int8(node.args[0]) if scales is not None else self._as_float(node.args[0])
        if source is None:
            raise _CannotLower("int8 weights with a float32 input")
        result = self._result(node, int8=scales is not None)
        bias = self._bias(node, weight.shape[0])
        multiplier = None
        if scales is not None:
            weight, bias, product = _quantized_layer(weight, bias, scales, source.scale)
            divisor = result.tensor.scale if result.tensor.dtype == "int8" else 1.0
            multiplier = (product / divisor).astype(np.float32)
        self._finish(result)
        self.ops.append(
            ir.Conv(
                inputs=(source.name,),
                output=result.tensor.name,
                layer=node.meta["custom"]["layer"],
                weight=np.ascontiguousarray(weight),
                bias=bias,
                multiplier=multiplier,
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=groups,
                clamp=result.clamp,
            )
        )

    def _weights(self, node: Any) -> tuple[Any, Any]:
        """(weights, None) of float32, or (int8 weights, float64 scales)."""
        if isinstance(node, fx.Node) and node.target is DEQUANTIZE_CHANNELS:
            values, scales = self.constants[node.args[0]], self.constants[node.args[1]]
            return values.numpy(), scales.double().numpy()
        if not isinstance(node, fx.Node) or node not in self.constants:
            raise _CannotLower("its weights are computed, not constant")
        return self.constants[node].detach().float().numpy(), None

    def _bias(self, node: fx.Node, units: int) -> Any:
        """The bias as (O,): float32, or float64 where it was quantized."""
        bias = node.args[2] if len(node.args) > 2 else None
        if bias is None:
            return np.zeros(units, np.float32)
        values, scales = self._weights(bias)
        return values if scales is None else values.astype(np.float64) * scales

    def _affine(self, node: fx.Node) -> None:
        slope, shift = (self.constants[arg].double().numpy() for arg in node.args[1:3])
        if len(self._shape(node)) not in (1, 3):
            raise _CannotLower("a batch norm over a sequence")
        (source,) = self._operands(node, node.args[:1])
        result = self._result(node, int8=source.dtype == "int8")
        if source.dtype == "int8":
            slope, shift = slope * source.scale / result.tensor.scale, shift / result.tensor.scale
        self._finish(result)
        self.ops.append(
            ir.Affine(
                inputs=(source.name,),
                output=result.tensor.name,
                layer=node.meta["custom"].get("layer", node.name),
                slope=slope.astype(np.float32),
                shift=shift.astype(np.float32),
                clamp=result.clamp,
            )
        )

    # ---- pools -----------------------------------------------------------------------------------------------

    def _max_pool(self, node: fx.Node) -> None:
        kernel = _pair(node.args[1])
        stride, padding, dilation, _ = _arguments(node, 2, [kernel, (0, 0), (1, 1), False])
        source, shape = self._as_int8(node.args[0]), self._shape(node)
        if source is not None:
            result = ir.Tensor(
                name=f"{node.name}.int8",
                dtype="int8",
                shape=shape,
                scale=source.scale,
                zero_point=source.zero_point,
            )
            self.values[node] = _View(result.name)
            clamp: ir.Clamp = (-128, 127)
        else:
            source, result, clamp = self._as_float(node.args[0]), self._float_tensor(node), _NO_CLAMP
            self.values[node] = result
        self._define(result)
        self.ops.append(
            ir.MaxPool(
                inputs=(source.name,),
                output=result.name,
                kernel=kernel,
                stride=_pair(stride or kernel),
                padding=_pair(padding),
                dilation=_pair(dilation),
                clamp=clamp,
            )
        )

    def _average(self, node: fx.Node, make: Callable[..., ir.Op]) -> None:
        """Append an average."""
        (source,) = self._operands(node, node.args[:1])
        result = self._result(node, int8=source.dtype == "int8")
        self._finish(result)
        multiplier = source.scale / result.tensor.scale if source.dtype == "int8" else 1.0
        self.ops.append(
            make(inputs=(source.name,), output=result.tensor.name, multiplier=multiplier, clamp=result.clamp)
        )

    def _avg_pool(self, node: fx.Node) -> None:
        kernel = _pair(node.args[1])
        stride, padding, _, count_padding, divisor = _arguments(
            node,
            2,
            [kernel, (0, 0), False, True, None],
            ["stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"],
        )
        self._average(
            node,
            lambda **common: ir.AvgPool(
                kernel=kernel,
                stride=_pair(stride or kernel),
                padding=_pair(padding),
                count_padding=bool(count_padding),
                divisor=int(divisor or 0),
                **common,
            ),
        )

    def _adaptive_pool(self, node: fx.Node) -> None:
        self._average(node, lambda **common: ir.AdaptiveAvgPool(**common))

    def _mean(self, node: fx.Node) -> None:
        """A mean over both spatial axes."""
        source = self.tensors[self._value(node.args[0]).name]
        axes = {int(axis) % 4 for axis in node.args[1]} if len(source.shape) == 3 else set()  # type: ignore[union-attr,arg-type]
        if axes != {2, 3}:
            raise _CannotLower(f"a mean over the axes {node.args[1]}; only (2, 3) of an image")
        self._average(node, lambda **common: ir.AdaptiveAvgPool(**common))

    # ---- joins -----------------------------------------------------------------------------------------------

    def _add(self, node: fx.Node) -> None:
        a, b = node.args[:2]
        alpha = float(node.kwargs.get("alpha", 1))  # type: ignore[arg-type]
        if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)) or a in self.constants or b in self.constants:
            raise _CannotLower("an addition of a constant")
        left, right = self._operands(node, (a, b))
        if left.shape != right.shape:
            raise _CannotLower("an addition of different shapes")
        result = self._result(node, int8=left.dtype == "int8")
        divisor = result.tensor.scale if left.dtype == "int8" else 1.0
        multipliers = (left.scale / divisor, right.scale * alpha / divisor)
        self._finish(result)
        self.ops.append(
            ir.Add(
                inputs=(left.name, right.name),
                output=result.tensor.name,
                multipliers=multipliers,
                clamp=result.clamp,
            )
        )

    def _concat(self, node: fx.Node) -> None:
        axis = int(_arguments(node, 1, [0], ["dim"])[0]) % len(node.meta["val"].shape)
        if axis == 0:
            raise _CannotLower("a concatenation along the batch")
        sources = self._operands(node, node.args[0])
        result = self._result(node, int8=sources[0].dtype == "int8")
        self._finish(result)
        total, offset = result.tensor, 0
        for source in sources:
            outer, inner, stride = _strides(source, total, axis)
            multiplier = source.scale / total.scale if source.dtype == "int8" else 1.0
            self.ops.append(
                ir.Copy(
                    inputs=(source.name,),
                    output=total.name,
                    outer=outer,
                    inner=inner,
                    out_stride=stride,
                    out_offset=offset,
                    multiplier=multiplier,
                    clamp=result.clamp,
                )
            )
            offset += inner

    # ---- shapes ----------------------------------------------------------------------------------------------

    def _reshape(self, node: fx.Node) -> None:
        value, shape = self._value(node.args[0]), self._shape(node)
        source = self.tensors[value.name]
        if math.prod(shape) != source.n_elements:
            raise _CannotLower("a reshape that mixes images of a batch")
        name = f"{node.name}.int8" if source.dtype == "int8" else node.name
        result = dataclasses.replace(source, name=name, shape=shape)
        self.values[node] = _View(name) if isinstance(value, _View) else result
        self._move(source, result)

    def _move(self, source: ir.Tensor, result: ir.Tensor) -> None:
        """The same numbers under another shape; images are channels-last, everything else row-major."""
        if len(source.shape) == 3 and source.shape != result.shape:
            height, width, channels = source.hwc
            source = self._transpose(source, height * width, channels, (source.n_elements,))
        if len(result.shape) == 3 and len(source.shape) != 3:
            channels, height, width = result.shape
            if channels > 1 and height * width > 1:
                self._define(result)
                self.ops.append(
                    ir.Permute(inputs=(source.name,), output=result.name, rows=channels, cols=height * width)
                )
                return
        self._define(result)
        self.ops.append(ir.Alias(inputs=(source.name,), output=result.name))

    def _transpose(self, source: ir.Tensor, rows: int, cols: int, shape: tuple[int, ...]) -> ir.Tensor:
        """An image in row-major order."""
        if rows == 1 or cols == 1:
            return dataclasses.replace(source, shape=shape)
        result = dataclasses.replace(source, name=f"{source.name}.rows", shape=shape)
        if result.name not in self.tensors:
            self._define(result)
            self.ops.append(ir.Permute(inputs=(source.name,), output=result.name, rows=rows, cols=cols))
        return result

    def _softmax(self, node: fx.Node) -> None:
        source = self._as_float(node.args[0])
        rank = len(source.shape) + 1
        axis = int(node.args[1]) % rank  # type: ignore[arg-type]
        if axis != (1 if rank == 4 else rank - 1):
            raise _CannotLower(f"a softmax over axis {axis}")
        self.values[node] = self._define(self._float_tensor(node))
        self.ops.append(ir.Softmax(inputs=(source.name,), output=node.name))

    # ---- what cannot be lowered ------------------------------------------------------------------------------

    def _foreign(self, node: fx.Node, reason: str) -> None:
        """Leave a node to torch; one whose result is no tensor of ours is computed with its readers."""
        try:
            tensor = self._float_tensor(node)
        except _CannotLower:
            return
        inputs: dict[str, None] = {}
        layer = self._collect(node, inputs)
        self.values[node] = self._define(tensor)
        self.ops.append(
            ir.Foreign(
                inputs=tuple(inputs),
                output=node.name,
                layer=layer,
                node=node.name,
                operator=str(node.target),
                module=node.meta.get("custom", {}).get("module", ""),
                reason=reason,
            )
        )

    def _collect(self, node: fx.Node, inputs: dict[str, None]) -> str | None:
        """Names of the tensors that a node needs, through nodes that have none; and the layer it belongs to."""
        layer: str | None = node.meta.get("custom", {}).get("layer")
        for arg in node.all_input_nodes:
            if arg in self.values:
                inputs[self._as_float(arg).name] = None
            elif arg not in self.constants:
                layer = self._collect(arg, inputs) or layer
        return layer


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _arguments(node: fx.Node, first: int, defaults: list[Any], names: list[str] | None = None) -> list[Any]:
    """Positional arguments from `first` on (or keyword arguments of these names), with their defaults."""
    given = list(node.args[first:])
    values = given + defaults[len(given) :]
    return [node.kwargs.get(n, v) for n, v in zip(names, values, strict=True)] if names else values


def _pair(value: Any) -> ir.Pair:
    if isinstance(value, int):
        return value, value
    values = [int(v) for v in value]
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def _clamp_again(first: ir.Clamp, second: ir.Clamp) -> ir.Clamp:
    """One clamp that does what the first and then the second do."""
    low, high = (min(max(bound, second[0]), second[1]) for bound in first)
    return low, high


def _quantized_clamp(clamp: ir.Clamp, tensor: ir.Tensor) -> ir.Clamp:
    """Bounds of an activation in units of its quantized result: quantizing is monotonic, so they commute."""
    return tuple(_quantized_bound(bound, tensor) for bound in clamp)  # type: ignore[return-value]


def _quantized_bound(bound: float, tensor: ir.Tensor) -> int:
    if math.isinf(bound):
        return -128 if bound < 0 else 127
    scaled = np.float32(bound) * np.float32(1.0 / tensor.scale)
    return int(np.clip(np.rint(scaled) + tensor.zero_point, -128, 127))


def _quantized_layer(weight: Any, bias: Any, scales: Any, input_scale: float) -> tuple[Any, Any, Any]:
    """int8 weights, int32 bias and the scale of their products, (O,) float64.

    A unit whose weights are all but zero has a scale so small that its bias would not fit in int32; it gets a
    larger scale, at which its weights are rounded anew.
    """
    product = scales * input_scale
    enough = np.maximum(product, np.abs(bias) / _MAX_BIAS)
    shrink = (product / enough).reshape(-1, 1, 1, 1)
    weight = np.clip(np.rint(weight * shrink), -127, 127).astype(np.int8)
    return weight, np.rint(bias / enough).astype(np.int32), enough


def _strides(source: ir.Tensor, total: ir.Tensor, axis: int) -> tuple[int, int, int]:
    """(outer, inner, stride) of a part of a concatenation along `axis` (counted with the batch)."""
    shape, whole = list(source.shape), list(total.shape)
    axis -= 1
    if len(shape) == 3:  # channels-last in memory
        shape, whole, axis = [*shape[1:], shape[0]], [*whole[1:], whole[0]], (axis - 1) % 3
    return math.prod(shape[:axis]), math.prod(shape[axis:]), math.prod(whole[axis:])
