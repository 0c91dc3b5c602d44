"""The ATen operators that the compiler knows, by what they do to scales."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

__all__ = [
    "ACTIVATIONS",
    "ADD",
    "CAT",
    "CONVOLUTIONS",
    "DEQUANTIZE",
    "DEQUANTIZE_CHANNELS",
    "IDENTITIES",
    "KEEPS_SCALE",
    "LINEAR",
    "NEW_SCALE",
    "QUANTIZE",
    "RESHAPES",
    "activation_chain",
    "activation_range",
]

aten = torch.ops.aten

CONVOLUTIONS = (aten.conv2d.default, aten.conv2d.padding)
LINEAR = aten.linear.default
ADD = aten.add.Tensor
CAT = aten.cat.default
ACTIVATIONS = (
    aten.relu.default,
    aten.relu6.default,
    aten.hardtanh.default,
    aten.clamp.default,
    aten.clamp_min.default,
    aten.clamp_max.default,
)
#: Averages: the result has a scale of its own.
NEW_SCALE = (aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim)
RESHAPES = (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
)
#: The same numbers in another place: the result keeps its input's scale.
KEEPS_SCALE = (aten.max_pool2d.default, *RESHAPES)
IDENTITIES = (
    aten.clone.default,
    aten.dropout.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
)


def _quantized(name: str) -> Any:
    # torch registers these operators when this module is first imported.
    import torch.ao.quantization.fx._decomposed

    return getattr(torch.ops.quantized_decomposed, name).default


QUANTIZE = _quantized("quantize_per_tensor")
DEQUANTIZE = _quantized("dequantize_per_tensor")
DEQUANTIZE_CHANNELS = _quantized("dequantize_per_channel")


def activation_chain(node: fx.Node) -> list[fx.Node]:
    """The activations that follow a node and that nothing else comes between or reads: one clamp does them all."""
    chain: list[fx.Node] = []
    last = node
    while len(last.users) == 1 and (user := next(iter(last.users))).target in ACTIVATIONS:
        chain.append(user)
        last = user
    return chain


def activation_range(node: fx.Node) -> tuple[float, float]:
    """The bounds (lo, hi) of an activation of `ACTIVATIONS`; infinite where it has none."""
    arguments = [*node.args[1:], None, None]
    low, high = node.kwargs.get("min", arguments[0]), node.kwargs.get("max", arguments[1])
    if node.target is aten.relu.default:
        low, high = 0.0, None
    elif node.target is aten.relu6.default:
        low, high = 0.0, 6.0
    elif node.target is aten.hardtanh.default:
        low = node.kwargs.get("min_val", -1.0 if arguments[0] is None else arguments[0])
        high = node.kwargs.get("max_val", 1.0 if arguments[1] is None else arguments[1])
    elif node.target is aten.clamp_max.default:
        low, high = None, node.kwargs.get("max", arguments[0])
    top = math.inf if high is None else float(high)  # type: ignore[arg-type]
    # torch takes the upper bound last: it wins where the bounds cross.
    return min(-math.inf if low is None else float(low), top), top  # type: ignore[arg-type]
