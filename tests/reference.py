"""torchao's converted model, evaluated without rounding errors."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx

from cloister.compile.operators import DEQUANTIZE, DEQUANTIZE_CHANNELS, QUANTIZE


class _Exact(fx.Interpreter):
    """Computes in float64 between dequantizing and quantizing.

    The converted model computes there in float32, and an error in the seventh digit moves a value to another integer
    now and then; layer by layer that grows (`benchmarks/agreement.py` measures how far). What the model means is what
    exact arithmetic gives. The input is quantized in float32, as everywhere: pixels lie on halves of its scale.
    """

    def call_function(self, target, args, kwargs):
        if target is DEQUANTIZE:
            values, scale, zero_point = args[:3]
            return (values.double() - zero_point) * float(scale)
        if target is DEQUANTIZE_CHANNELS:
            values, scales, zero_points, axis = args[:4]
            shape = [-1 if i == axis else 1 for i in range(values.dim())]
            return (values.double() - zero_points.view(shape)) * scales.double().view(shape)
        if target is QUANTIZE and args[0].dtype == torch.float64:
            values, scale, zero_point, low, high = args[:5]
            return torch.clamp(torch.round(values / float(scale)) + zero_point, low, high).to(torch.int8)
        return super().call_function(target, args, kwargs)


def run_exactly(converted: fx.GraphModule, x: np.ndarray, batch: int = 100) -> np.ndarray:
    """(N, …) float32 images to (N, K) float64."""
    with torch.no_grad():
        return np.concatenate([_Exact(converted).run(part).numpy() for part in torch.from_numpy(x).split(batch)])
