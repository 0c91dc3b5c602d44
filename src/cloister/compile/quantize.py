"""Quantization to int8 with torchao PT2E: which tensors are quantized, and how.

Activations are int8 per tensor with a zero point; weights are int8 per output unit, symmetric, in [-127, 127]; biases
are int32 in units of the products. What this quantizer does not name stays float32.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx

from cloister.compile.capture import Captured, affine
from cloister.compile.lower import unlowered
from cloister.compile.operators import (
    ACTIVATIONS,
    ADD,
    CAT,
    CONVOLUTIONS,
    KEEPS_SCALE,
    LINEAR,
    NEW_SCALE,
    activation_chain,
)
from cloister.compile.quiet import quiet
from cloister.progress import Progress

with quiet():
    from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import (
        DerivedQuantizationSpec,
        QuantizationAnnotation,
        QuantizationSpec,
        Quantizer,
        SharedQuantizationSpec,
    )

__all__ = ["CloisterQuantizer", "quantize"]

_CALIBRATION_BATCH = 32
_WEIGHTLESS = (*NEW_SCALE, *KEEPS_SCALE, *ACTIVATIONS, ADD, CAT, affine)

_ACTIVATION = QuantizationSpec(
    dtype=torch.int8,
    observer_or_fake_quant_ctr=MinMaxObserver.with_args(),
    quant_min=-128,
    quant_max=127,
    qscheme=torch.per_tensor_affine,
    is_dynamic=False,
)
_WEIGHT = QuantizationSpec(
    dtype=torch.int8,
    observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(),
    quant_min=-127,
    quant_max=127,
    qscheme=torch.per_channel_symmetric,
    ch_axis=0,
    is_dynamic=False,
)


def quantize(captured: Captured, calibration: torch.Tensor, progress: Progress | None = None) -> fx.GraphModule:
    """Quantize a captured model after training.

    Args:
        captured: the float32 model; it is not changed.
        calibration: (N, *input_shape) float32, images that the scales are taken from.
        progress: told how far the calibration is, or None.

    Returns:
        torchao's converted model: the reference that programs are made from and compared with.
    """
    size = _CALIBRATION_BATCH if captured.dynamic_batch else 1
    with quiet(), torch.no_grad():
        prepared = prepare_pt2e(copy.deepcopy(captured.module), CloisterQuantizer(unlowered(captured.module)))
        for start in range(0, len(calibration), size):
            prepared(calibration[start : start + size])
            if progress is not None:
                progress.update(min(start + size, len(calibration)), len(calibration), "calibrating")
        converted = convert_pt2e(prepared, fold_quantize=True)
    assert isinstance(converted, fx.GraphModule)
    return converted


class CloisterQuantizer(Quantizer):  # type: ignore[misc]
    """Names the tensors to quantize: as little stays float32 as the inside's operations allow.

    Args:
        unlowered: names of nodes that cannot be lowered; they run in torch, on float32.
    """

    def __init__(self, unlowered: set[str]) -> None:
        super().__init__()
        self._unlowered = unlowered

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Annotate every operation that is to take int8."""
        quantized = _quantized_nodes(model.graph, self._unlowered)
        for node in quantized:
            last = _fused_activation(node) or node
            result = SharedQuantizationSpec((node.args[0], node)) if node.target in KEEPS_SCALE else _ACTIVATION
            if not any(user in quantized for user in last.users):
                result = None
            node.meta["quantization_annotation"] = QuantizationAnnotation(
                input_qspec_map=_input_specs(node), output_qspec=result if last is node else None, _annotated=True
            )
            if last is not node:
                last.meta["quantization_annotation"] = QuantizationAnnotation(output_qspec=result, _annotated=True)
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing to validate: the lowering finds what cannot be lowered."""


def _input_specs(node: fx.Node) -> dict[Any, Any]:
    """How each input of an operation is quantized."""
    arguments: Any = node.args
    if node.target in (*CONVOLUTIONS, LINEAR):
        specs = {arguments[0]: _ACTIVATION, arguments[1]: _WEIGHT}
        if len(arguments) > 2 and arguments[2] is not None:
            specs[arguments[2]] = _bias_spec(node)
        return specs
    if node.target is CAT:
        return dict.fromkeys(arguments[0], _ACTIVATION)
    return dict.fromkeys(arguments[: 2 if node.target is ADD else 1], _ACTIVATION)


def _bias_spec(node: fx.Node) -> Any:
    """int32, in units of input scale times weight scale."""
    return DerivedQuantizationSpec(
        derived_from=[(node.args[0], node), (node.args[1], node)],
        derive_qparams_fn=_product_scale,
        dtype=torch.int32,
        quant_min=-(2**31),
        quant_max=2**31 - 1,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )


def _product_scale(observers: Any) -> tuple[torch.Tensor, torch.Tensor]:
    scale = observers[0].calculate_qparams()[0] * observers[1].calculate_qparams()[0]
    return scale.float(), torch.zeros_like(scale, dtype=torch.int64)


def _fused_activation(node: fx.Node) -> fx.Node | None:
    """The last of the activations that are computed together with this operation, if there are any."""
    chain = [] if node.target in KEEPS_SCALE else activation_chain(node)
    return chain[-1] if chain else None


def _quantized_nodes(graph: fx.Graph, unlowered: set[str]) -> dict[fx.Node, None]:
    """The operations that take int8: those of the tables, except where only float32 work follows.

    An operation that has no weights and gives its result to float32 work alone (the model's output, a softmax) gains
    nothing from int8, so walking backwards they stay float32.
    """
    chosen: dict[fx.Node, None] = {}
    fused = {a for node in graph.nodes if node.target not in KEEPS_SCALE for a in activation_chain(node)}
    for node in reversed(graph.nodes):
        if node.op != "call_function" or node in fused or node.name in unlowered:
            continue
        last = _fused_activation(node) or node
        if _has_weights(node) or (node.target in _WEIGHTLESS and any(user in chosen for user in last.users)):
            chosen[node] = None
    return chosen


def _has_weights(node: fx.Node) -> bool:
    """A convolution or linear layer whose weights are parameters."""
    if node.target not in (*CONVOLUTIONS, LINEAR):
        return False
    constants = [arg for arg in node.args[1:3] if isinstance(arg, fx.Node)]
    return all(arg.op == "get_attr" for arg in constants)
