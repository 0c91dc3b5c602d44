"""The layout of convolutions: how their weights are packed for the kernels, and what they need as scratch.

Format: `docs/spec/program.md`, "conv".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cloister.compile.ir import Conv, Tensor

__all__ = ["gathered_bytes", "is_depthwise", "pack_units", "packed_taps", "strip_bytes", "up4"]

#: Units side by side, and output positions that a kernel wants at a time.
_BLOCK = 16
_POSITIONS = 128


def is_depthwise(op: Conv) -> bool:
    """Whether each channel has one unit of its own."""
    n_units, n_channels = len(op.weight), op.weight.shape[3] * op.groups
    return op.groups > 1 and op.groups == n_units == n_channels


def packed_taps(op: Conv) -> int:
    """int8 weights of one unit as packed: each row of the window rounded up to a multiple of 4."""
    height, width, n_channels = map(int, op.weight.shape[1:])
    return height * width if is_depthwise(op) else height * up4(width * n_channels)


def pack_units(op: Conv, first: int, n_units: int) -> bytes:
    """The plaintext of a slice: packed weights, then for each unit its bias; of int8 multiplier, bias, sum of weights.

    Args:
        op: int8 or float32.
        first: index of the first unit.
        n_units: number of units.
    """
    if op.multiplier is None:
        return _pack_float32(op, first, n_units)
    units = slice(first, first + n_units)
    weight = op.weight[units]
    sums = weight.reshape(n_units, -1).sum(axis=1, dtype=np.int64)
    numbers = [op.multiplier[units].astype("<f4"), op.bias[units].astype("<i4"), sums.astype("<i4")]
    if is_depthwise(op):
        return weight.reshape(n_units, -1).T.tobytes() + b"".join(column.tobytes() for column in numbers)
    parts = list(_group_parts(op, first, n_units))
    packed = b"".join(_pack_part(weight[part]) for part in parts)
    return packed + b"".join(_pad(column[part], 4).tobytes() for column in numbers for part in parts)


def _pack_float32(op: Conv, first: int, n_units: int) -> bytes:
    """Blocks of 16 units of one group, the last of as many as are left: each [taps][units]."""
    weight = op.weight[first : first + n_units].reshape(n_units, -1)
    parts = [slice(0, n_units)] if is_depthwise(op) else _group_parts(op, first, n_units)
    step = n_units if is_depthwise(op) else _BLOCK
    blocks = (weight[part][i : i + step] for part in parts for i in range(0, part.stop - part.start, step))
    packed = b"".join(block.T.astype("<f4").tobytes() for block in blocks)
    return packed + op.bias[first : first + n_units].astype("<f4").tobytes()


def _group_parts(op: Conv, first: int, n_units: int) -> Iterator[slice]:
    """Runs of units of one group, counted from `first`."""
    size = len(op.weight) // op.groups
    inner = range((first // size + 1) * size, first + n_units, size)
    for start, end in itertools.pairwise([first, *inner, first + n_units]):
        yield slice(start - first, end - first)


def _pack_part(weight: npt.NDArray[np.generic]) -> bytes:
    """(units, KH, KW, C) as blocks of 16 units, the last of 4, 8, 12 or 16: each [taps / 4][units][4]."""
    n_units, height, *_ = weight.shape
    rows = _pad(_pad(weight.reshape(n_units, height, -1), 4, axis=2), 4)
    fours = rows.reshape(len(rows), -1, 4).swapaxes(0, 1)  # (taps / 4, units, 4)
    return b"".join(fours[:, i : i + _BLOCK].astype("<i1").tobytes() for i in range(0, len(rows), _BLOCK))


def _pad(values: npt.NDArray[np.generic], step: int, axis: int = 0) -> npt.NDArray[np.generic]:
    """With zeros up to a multiple of `step`."""
    widths = [(0, 0)] * values.ndim
    widths[axis] = (0, -values.shape[axis] % step)
    return np.pad(values, widths)


def strip_bytes(op: Conv, source: Tensor, output: Tensor) -> int:
    """Bytes of scratch of a convolution: the input lines of some rows of its output, padding filled in."""
    if is_depthwise(op) or (op.multiplier is None and _reads_in_place(op, source, output)):
        return 0
    _, out_w, _ = output.hwc
    n_rows = _strip_rows(output)
    (height, width, n_channels), shared = map(int, op.weight.shape[1:]), [False, False]
    for axis, taps in enumerate((height, width)):
        shared[axis] = op.dilation[axis] == 1 and op.stride[axis] < taps
    row_lines = op.stride[0] if shared[0] else height
    col_taps = op.stride[1] if shared[1] else width
    n_lines = (n_rows - 1) * row_lines + height
    line_taps = -(-((out_w - 1) * col_taps + width) // col_taps) * col_taps
    n_elements = n_lines * line_taps * n_channels
    return 4 * n_elements if op.multiplier is None else n_elements + 3


def _reads_in_place(op: Conv, source: Tensor, output: Tensor) -> bool:
    """Whether float32 is read where it lies: nothing is padded, and each row of a window is in one piece."""
    for axis, taps in enumerate(op.weight.shape[1:3]):
        last = (output.hwc[axis] - 1) * op.stride[axis] + (taps - 1) * op.dilation[axis]
        if op.padding[axis] or last >= source.hwc[axis]:
            return False
    return op.weight.shape[2] == 1 or (op.dilation[1] == 1 and op.groups == 1)


def _strip_rows(output: Tensor) -> int:
    """Rows of a convolution's output that are computed from one strip."""
    height, width, _ = output.hwc
    return min(height, -(-_POSITIONS // width))


def gathered_bytes(op: Conv, source: Tensor, output: Tensor) -> int:
    """Bytes that a further slice of a convolution copies into its scratch anew, over all positions."""
    n_strips = -(-output.hwc[0] // _strip_rows(output))
    return 0 if n_strips == 1 and op.groups == 1 else n_strips * strip_bytes(op, source, output)


def up4(n: int) -> int:
    """Rounds up to a multiple of 4."""
    return -(-n // 4) * 4
