"""From a captured (and perhaps quantized) graph to operations of the intermediate representation.

The graph is walked once in its order; `values.py` keeps what every node is worth. An operation whose inputs are views
of int8 tensors and whose result is quantized again becomes an int8 operation; any other becomes a float32 one, with
copies that convert. What has no counterpart becomes `Foreign`.
"""

from __future__ import annotations

import dataclasses
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
    activation_range,
)
from cloister.compile.values import NO_CLAMP, CannotLower, Values, View, clamp_again, quantized_clamp
from cloister.errors import TargetError

__all__ = ["lower", "unlowered"]

aten = torch.ops.aten
_MAX_BIAS = 2**30 - 1
_MAX_TAPS = 65536


def lower(module: fx.GraphModule) -> ir.Graph:
    """Lower a graph.

    Args:
        module: what `capture` or `quantize` gave.

    Returns:
        The graph; `Foreign` operations stand for what cannot be lowered.
    """
    return _Lowering(module).run()


def unlowered(module: fx.GraphModule) -> set[str]:
    """Names of the nodes that `lower` cannot lower: quantization leaves them in float32."""
    lowering = _Lowering(module)
    lowering.run()
    return lowering.refused


class _Lowering(Values):
    """One walk over a graph, with a rule for each operator."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.refused: set[str] = set()
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
                source = self.define(self.float_tensor(node)).name
                self.values[node] = self.tensors[source]
            elif node.op == "output":
                result = node.args[0][0] if isinstance(node.args[0], tuple | list) else node.args[0]
                output = self.as_float(result).name
            elif not self.fold_constant(node) and node not in self.absorbed:
                self._lower_node(node)
        return ir.Graph(tensors=self.tensors, ops=tuple(self.ops), input=source, output=output)

    def _lower_node(self, node: fx.Node) -> None:
        rule = self.rules.get(node.target)
        kept = len(self.ops), dict(self.tensors), dict(self.values), set(self.absorbed)
        try:
            if rule is None:
                raise CannotLower("no such operation inside")
            rule(node)
        except CannotLower as reason:
            del self.ops[kept[0] :]
            self.tensors, self.values, self.absorbed = kept[1:]
            self.refused.add(node.name)
            self._foreign(node, str(reason))

    # ---- scales ----------------------------------------------------------------------------------------------

    def _quantize(self, node: fx.Node) -> None:
        source = self.tensors[self.value(node.args[0]).name]
        result = self.quantized_tensor(node, source.shape)
        if (source.dtype, source.scale, source.zero_point) == (result.dtype, result.scale, result.zero_point):
            self.values[node] = source
            return
        self.values[node] = self.define(result)
        multiplier = source.scale / result.scale if source.dtype == "int8" else 1.0 / result.scale
        self.copy(source, result, multiplier, (-128, 127))

    def _dequantize(self, node: fx.Node) -> None:
        self.values[node] = View(self.value(node.args[0]).name)

    def _activation(self, node: fx.Node) -> None:
        """Activations that no operation before them takes along."""
        (source,) = self.operands(node, node.args[:1])
        result = self.result(node, int8=source.dtype == "int8")
        clamp = activation_range(node)
        if result.tensor.dtype == "int8":
            clamp = quantized_clamp(clamp, result.tensor)
        self.finish(result)
        ratio = source.scale / result.tensor.scale if source.dtype == "int8" else 1.0
        self.copy(source, result.tensor, ratio, clamp_again(clamp, result.clamp))

    # ---- layers ----------------------------------------------------------------------------------------------

    def _conv(self, node: fx.Node) -> None:
        self._need_image(node)
        stride, padding, dilation, groups = _arguments(node, 3, [(1, 1), (0, 0), (1, 1), 1])
        weight = self._weights(node.args[1])[0]
        stride, dilation = _pair(stride), _pair(dilation)
        if isinstance(padding, str):
            reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            padding = (reach[0] // 2, reach[1] // 2) if padding == "same" else (0, 0)
        self._weighted(node, weight.transpose(0, 2, 3, 1), stride, _pair(padding), dilation, int(groups))

    def _linear(self, node: fx.Node) -> None:
        if len(self.shape(node)) == 3:
            raise CannotLower("a linear layer over the last axis of an image")
        weight = self._weights(node.args[1])[0]
        self._weighted(node, weight[:, None, None, :], (1, 1), (0, 0), (1, 1), 1)

    def _weighted(
        self, node: fx.Node, weight: Any, stride: ir.Pair, padding: ir.Pair, dilation: ir.Pair, groups: int
    ) -> None:
        """Append a convolution or linear layer; weight is (O, KH, KW, I / groups)."""
        if math.prod(weight.shape[1:]) > _MAX_TAPS:
            raise CannotLower(f"more than {_MAX_TAPS} inputs to one output unit")
        scales = self._weights(node.args[1])[1]
        source = self.as_int8(node.args[0]) if scales is not None else self.as_float(node.args[0])
        if source is None:
            raise CannotLower("int8 weights with a float32 input")
        result = self.result(node, int8=scales is not None)
        bias = self._bias(node, weight.shape[0])
        self._need_finite(node, weight, bias)
        multiplier = None
        if scales is not None:
            weight, bias, product = _quantized_layer(weight, bias, scales, source.scale)
            divisor = result.tensor.scale if result.tensor.dtype == "int8" else 1.0
            multiplier = (product / divisor).astype(np.float32)
        self.finish(result)
        self.ops.append(
            ir.Conv(
                inputs=(source.name,),
                output=result.tensor.name,
                layer=self.layer(node),
                reads=self.reads(node),
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

    def _need_finite(self, node: fx.Node, *constants: Any) -> None:
        if not all(np.isfinite(values).all() for values in constants):
            raise TargetError(
                f"layer `{self.layer(node)}`: expected finite weights, but some are NaN or infinite",
                "train the model again, or load other weights",
            )

    def _weights(self, node: Any) -> tuple[Any, Any]:
        """(weights, None) of float32, or (int8 weights, float64 scales)."""
        if isinstance(node, fx.Node) and node.target is DEQUANTIZE_CHANNELS:
            values, scales = self.constants[node.args[0]], self.constants[node.args[1]]
            return values.numpy(), scales.double().numpy()
        if not isinstance(node, fx.Node) or node not in self.constants:
            raise CannotLower("its weights are computed, not constant")
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
        if len(self.shape(node)) not in (1, 3):
            raise CannotLower("a batch norm over a sequence")
        self._need_finite(node, slope, shift)
        (source,) = self.operands(node, node.args[:1])
        result = self.result(node, int8=source.dtype == "int8")
        if source.dtype == "int8":
            slope, shift = slope * source.scale / result.tensor.scale, shift / result.tensor.scale
        self.finish(result)
        self.ops.append(
            ir.Affine(
                inputs=(source.name,),
                output=result.tensor.name,
                layer=self.layer(node),
                reads=self.reads(node),
                slope=slope.astype(np.float32),
                shift=shift.astype(np.float32),
                clamp=result.clamp,
            )
        )

    # ---- pools -----------------------------------------------------------------------------------------------

    def _need_image(self, node: fx.Node) -> None:
        """PyTorch's two-dimensional operations take a tensor of three axes for one image without a batch."""
        if len(self.shape(node)) != 3 or len(self.tensors[self.value(node.args[0]).name].shape) != 3:
            raise CannotLower("its input is no batch of images")

    def _max_pool(self, node: fx.Node) -> None:
        self._need_image(node)
        kernel = _pair(node.args[1])
        stride, padding, dilation, _ = _arguments(node, 2, [kernel, (0, 0), (1, 1), False])
        source, shape = self.as_int8(node.args[0]), self.shape(node)
        if source is not None:
            result = ir.Tensor(
                name=f"{node.name}.int8",
                dtype="int8",
                shape=shape,
                scale=source.scale,
                zero_point=source.zero_point,
            )
            self.values[node] = View(result.name)
            clamp: ir.Clamp = (-128, 127)
        else:
            source, result, clamp = self.as_float(node.args[0]), self.float_tensor(node), NO_CLAMP
            self.values[node] = result
        self.define(result)
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
        (source,) = self.operands(node, node.args[:1])
        result = self.result(node, int8=source.dtype == "int8")
        self.finish(result)
        multiplier = source.scale / result.tensor.scale if source.dtype == "int8" else 1.0
        self.ops.append(
            make(inputs=(source.name,), output=result.tensor.name, multiplier=multiplier, clamp=result.clamp)
        )

    def _avg_pool(self, node: fx.Node) -> None:
        self._need_image(node)
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
        self._need_image(node)
        self._average(node, lambda **common: ir.AdaptiveAvgPool(**common))

    def _mean(self, node: fx.Node) -> None:
        """A mean over both spatial axes."""
        source = self.tensors[self.value(node.args[0]).name]
        axes = {int(axis) % 4 for axis in node.args[1]} if len(source.shape) == 3 else set()  # type: ignore[union-attr,arg-type]
        if axes != {2, 3}:
            raise CannotLower(f"a mean over the axes {node.args[1]}; only (2, 3) of an image")
        self._average(node, lambda **common: ir.AdaptiveAvgPool(**common))

    # ---- joins -----------------------------------------------------------------------------------------------

    def _add(self, node: fx.Node) -> None:
        a, b = node.args[:2]
        alpha = float(node.kwargs.get("alpha", 1))  # type: ignore[arg-type]
        if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)) or a in self.constants or b in self.constants:
            raise CannotLower("an addition of a constant")
        left, right = self.operands(node, (a, b))
        if left.shape != right.shape:
            raise CannotLower("an addition of different shapes")
        result = self.result(node, int8=left.dtype == "int8")
        divisor = result.tensor.scale if left.dtype == "int8" else 1.0
        multipliers = (left.scale / divisor, right.scale * alpha / divisor)
        self.finish(result)
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
        sources = self.operands(node, node.args[0])
        result = self.result(node, int8=sources[0].dtype == "int8")
        self.finish(result)
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
        value, shape = self.value(node.args[0]), self.shape(node)
        source = self.tensors[value.name]
        name = f"{node.name}.int8" if source.dtype == "int8" else node.name
        result = dataclasses.replace(source, name=name, shape=shape)
        self.values[node] = View(name) if isinstance(value, View) else result
        self._move(source, result)

    def _move(self, source: ir.Tensor, result: ir.Tensor) -> None:
        """The same numbers under another shape; images are channels-last, everything else row-major."""
        if len(source.shape) == 3 and source.shape != result.shape:
            height, width, channels = source.hwc
            source = self._transpose(source, height * width, channels, (source.n_elements,))
        if len(result.shape) == 3 and len(source.shape) != 3:
            channels, height, width = result.shape
            if channels > 1 and height * width > 1:
                self.define(result)
                self.ops.append(
                    ir.Permute(inputs=(source.name,), output=result.name, rows=channels, cols=height * width)
                )
                return
        self.define(result)
        self.ops.append(ir.Alias(inputs=(source.name,), output=result.name))

    def _transpose(self, source: ir.Tensor, rows: int, cols: int, shape: tuple[int, ...]) -> ir.Tensor:
        """An image in row-major order."""
        if rows == 1 or cols == 1:
            return dataclasses.replace(source, shape=shape)
        result = dataclasses.replace(source, name=f"{source.name}.rows", shape=shape)
        if result.name not in self.tensors:
            self.define(result)
            self.ops.append(ir.Permute(inputs=(source.name,), output=result.name, rows=rows, cols=cols))
        return result

    def _softmax(self, node: fx.Node) -> None:
        source = self.as_float(node.args[0])
        rank = len(source.shape) + 1
        axis = int(node.args[1]) % rank  # type: ignore[arg-type]
        if axis != (1 if rank == 4 else rank - 1):
            raise CannotLower(f"a softmax over axis {axis}")
        self.values[node] = self.define(self.float_tensor(node))
        self.ops.append(ir.Softmax(inputs=(source.name,), output=node.name))

    # ---- what cannot be lowered ------------------------------------------------------------------------------

    def _foreign(self, node: fx.Node, reason: str) -> None:
        """Leave a node to torch; one whose result is no tensor of ours is computed with its readers."""
        try:
            tensor = self.float_tensor(node)
        except CannotLower:
            return
        inputs: dict[str, None] = {}
        group = self._collect(node, inputs)
        layers = [layer for part in group if (layer := self.layer(part))]
        made_by = node
        while made_by.target is operator.getitem:
            made_by = made_by.all_input_nodes[0]
        self.values[node] = self.define(tensor)
        self.ops.append(
            ir.Foreign(
                inputs=tuple(inputs),
                output=node.name,
                layer=layers[0] if layers else None,
                reads=tuple(dict.fromkeys(name for part in group for name in self.reads(part))),
                node=node.name,
                operator=str(made_by.target),
                module=node.meta.get("custom", {}).get("module", ""),
                reason=reason,
            )
        )

    def _collect(self, node: fx.Node, inputs: dict[str, None]) -> list[fx.Node]:
        """The node, and the nodes before it that have no tensor; the names of the tensors that they need."""
        group = [node]
        for arg in node.all_input_nodes:
            if arg in self.values:
                inputs[self.as_float(arg).name] = None
            elif arg not in self.constants:
                group += self._collect(arg, inputs)
        return group


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
