"""The constants of a program in the clear, out of the layout that kernels want: what `compile/packing.py` put in."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cloister.compile.packing import up4

__all__ = ["Window", "unpack"]

_BLOCK = 16


class Window(NamedTuple):
    """What a convolution's units look at.

    Attributes:
        height: of the window.
        width: of the window.
        channels: of a unit's group of input channels.
        units: of a group of output channels.
        depthwise: whether each channel has one unit of its own.
    """

    height: int
    width: int
    channels: int
    units: int
    depthwise: bool


def unpack(
    data: bytes, window: Window, first: int, n_units: int, *, int8: bool
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """A slice's weights and biases as real numbers.

    Those of int8 are in steps of the output for a step of the input: the multiplier of a unit times its integers.

    Args:
        data: the open slice.
        window: of the convolution.
        first: its first unit.
        n_units: how many it has.
        int8: whether it is int8, or float32.

    Returns:
        Weights (n_units, height, width, channels) and biases (n_units,).
    """
    runs = [n_units] if window.depthwise else list(_runs(first, n_units, window.units))
    return _unpack_int8(data, window, runs) if int8 else _unpack_float32(data, window, runs)


def _runs(first: int, n_units: int, size: int) -> Iterator[int]:
    """Numbers of units that are of one group."""
    inner = range((first // size + 1) * size, first + n_units, size)
    for start, end in itertools.pairwise([first, *inner, first + n_units]):
        yield end - start


def _unpack_float32(
    data: bytes, window: Window, runs: list[int]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    n_units, taps = sum(runs), window.height * window.width * window.channels
    values = np.frombuffer(data, "<f4").astype(np.float32)
    step = n_units if window.depthwise else _BLOCK
    sizes = [min(step, run - i) for run in runs for i in range(0, run, step)]
    blocks = np.split(values[: taps * n_units], np.cumsum([taps * size for size in sizes])[:-1])
    weights = np.concatenate([block.reshape(taps, -1).T for block in blocks])
    return weights.reshape(n_units, *window[:3]), values[taps * n_units :]


def _unpack_int8(
    data: bytes, window: Window, runs: list[int]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    height, width, channels = window[:3]
    row = width * channels
    if window.depthwise:
        weights = np.frombuffer(data, "<i1", height * row * sum(runs)).reshape(-1, sum(runs)).T
        end, padded = weights.size, runs
    else:
        padded = [up4(run) for run in runs]
        taps = height * up4(row)
        end = taps * sum(padded)
        sizes = [min(_BLOCK, run - i) for run in padded for i in range(0, run, _BLOCK)]
        blocks = np.split(np.frombuffer(data, "<i1", end), np.cumsum([taps * size for size in sizes])[:-1])
        units = [
            block.reshape(taps // 4, size, 4).swapaxes(0, 1).reshape(size, height, -1)[:, :, :row]
            for block, size in zip(blocks, sizes, strict=True)
        ]
        weights = _without_padding(np.concatenate(units), runs, padded)
    n_padded = sum(padded)
    multipliers = _without_padding(np.frombuffer(data, "<f4", n_padded, end), runs, padded)
    biases = _without_padding(np.frombuffer(data, "<i4", n_padded, end + 4 * n_padded), runs, padded)
    shaped = weights.reshape(sum(runs), height, width, channels).astype(np.float32)
    return shaped * multipliers[:, None, None, None].astype(np.float32), (
        biases * multipliers.astype(np.float64)
    ).astype(np.float32)


def _without_padding(values: npt.NDArray[np.generic], runs: list[int], padded: list[int]) -> npt.NDArray[np.generic]:
    """Rows of the units that are there, of which each run was filled up."""
    starts = itertools.accumulate(padded[:-1], initial=0)
    return np.concatenate([values[start : start + run] for start, run in zip(starts, runs, strict=True)])
