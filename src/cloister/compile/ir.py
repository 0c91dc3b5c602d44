"""The intermediate representation: a model as a list of operations on int8 and float32 tensors.

Capture and quantization produce it, stages and programs are made from it. Operations mean exactly what
`docs/spec/program.md` says for the opcode of the same name; `Alias` moves nothing, and `Foreign` stands for
what cannot be lowered.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "AdaptiveAvgPool",
    "Add",
    "Affine",
    "Alias",
    "AvgPool",
    "Clamp",
    "Conv",
    "Copy",
    "DType",
    "Foreign",
    "Graph",
    "MaxPool",
    "Op",
    "Pair",
    "Permute",
    "Softmax",
    "Tensor",
]

DType = Literal["int8", "float32"]
Pair = tuple[int, int]
#: Clamp (lo, hi) of an output, in its own dtype: integers in [-128, 127] for int8, floats (also infinite) otherwise.
Clamp = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """A value of one image.

    Attributes:
        name: unique in its graph.
        dtype: `int8` or `float32`.
        shape: without the batch axis, in PyTorch's order: (C, H, W), or any other rank from 1 on.
        scale: int8 only: real value = (q - zero_point) * scale.
        zero_point: int8 only, in [-128, 127].
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    scale: float = 1.0
    zero_point: int = 0

    @property
    def hwc(self) -> tuple[int, int, int]:
        """(h, w, c) in memory: an image channels-last, anything else row-major."""
        if len(self.shape) == 3:
            channels, height, width = self.shape
            return height, width, channels
        return 1, math.prod(self.shape[:-1]), self.shape[-1]

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes that one image's value occupies."""
        return self.n_elements * (1 if self.dtype == "int8" else 4)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Op:
    """What all operations have.

    Attributes:
        inputs: names of tensors.
        output: name of a tensor.
        layer: the module with parameters that this is, or None.
        reads: names of the parameters that its constants were made from.
    """

    inputs: tuple[str, ...]
    output: str
    layer: str | None = None
    reads: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Conv(_Op):
    """Convolution or linear layer, with its batch norm folded in.

    Attributes:
        weight: (O, KH, KW, I / groups), int8 in [-127, 127] or float32.
        bias: (O,), int32 for int8 weights, float32 otherwise.
        multiplier: (O,) float32, int8 weights only: s_in * s_w / s_out, or s_in * s_w for a float32 output.
        padding: (top, left); bottom and right follow from the output's shape.
    """

    weight: npt.NDArray[np.int8] | npt.NDArray[np.float32]
    bias: npt.NDArray[np.int32] | npt.NDArray[np.float32]
    multiplier: npt.NDArray[np.float32] | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    clamp: Clamp


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MaxPool(_Op):
    """Max pooling."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    clamp: Clamp


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AvgPool(_Op):
    """Average pooling; `divisor` 0 means none."""

    kernel: Pair
    stride: Pair
    padding: Pair
    count_padding: bool
    divisor: int
    multiplier: float
    clamp: Clamp


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AdaptiveAvgPool(_Op):
    """Average over windows that tile the input; a mean over the spatial axes has a 1x1 output."""

    multiplier: float
    clamp: Clamp


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Add(_Op):
    """a * multipliers[0] + b * multipliers[1]."""

    multipliers: tuple[float, float]
    clamp: Clamp


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Affine(_Op):
    """A batch norm by itself: slope and shift are (C,) float32, in units of the quantized output for int8."""

    slope: npt.NDArray[np.float32]
    shift: npt.NDArray[np.float32]
    clamp: Clamp


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Copy(_Op):
    """Convert, clamp, and write to a strided place of the output.

    Several copies may share one output, each writing its part (a concatenation); all come before its first reader.
    """

    outer: int
    inner: int
    out_stride: int
    out_offset: int
    multiplier: float
    clamp: Clamp


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Permute(_Op):
    """Transpose the input, seen as a (rows, cols) matrix in memory."""

    rows: int
    cols: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Softmax(_Op):
    """Softmax over c."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Alias(_Op):
    """The same bytes under another shape: no operation in the program."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Foreign(_Op):
    """An operation of the exported program that cannot be lowered; it can only run outside, in torch.

    Attributes:
        node: the name of its node in the exported graph.
        operator: for example `aten.sigmoid.default`.
        module: the path of the module that it is computed in, may be empty.
        reason: why it cannot be lowered.
    """

    node: str
    operator: str
    module: str
    reason: str


Op = Conv | MaxPool | AvgPool | AdaptiveAvgPool | Add | Affine | Copy | Permute | Softmax | Alias | Foreign


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """A whole model for one image; operations are in an order in which they can run.

    Attributes:
        tensors: by name; every input and output of every operation is there.
        ops: the operations.
        input: name of the model's input, float32.
        output: name of the model's output, float32.
    """

    tensors: dict[str, Tensor]
    ops: tuple[Op, ...]
    input: str
    output: str

    def layers(self) -> Iterator[str]:
        """Names of the layers with parameters, each once, in the order of their first use."""
        yield from dict.fromkeys(op.layer for op in self.ops if op.layer)
