"""What crosses between the worlds: the tensors that an outsider sees anyway."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from cloister.bundle.manifest import Manifest

__all__ = ["Crossing", "crossings"]

_ITEM_BYTES = {"int8": 1, "float32": 4}


class Crossing(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor that goes into an inside stage, or comes out of one.

    Attributes:
        tensor: its name.
        direction: `in` or `out`.
        dtype: `int8` or `float32`.
        shape: without the batch axis.
        n_bytes: for one image.
    """

    tensor: str
    direction: Literal["in", "out"]
    dtype: Literal["int8", "float32"]
    shape: tuple[int, ...]
    n_bytes: int


def crossings(manifest: Manifest) -> tuple[Crossing, ...]:
    """Every crossing of one image, in the order of running; none if nothing is inside."""
    return tuple(
        _crossing(manifest, name, direction)
        for step in manifest.steps
        if step.world == "inside"
        for direction, names in (("in", step.inputs), ("out", step.outputs))
        for name in names
    )


def _crossing(manifest: Manifest, name: str, direction: str) -> Crossing:
    tensor = next(tensor for tensor in manifest.tensors if tensor.name == name)
    return Crossing(
        tensor=name,
        direction="in" if direction == "in" else "out",
        dtype=tensor.dtype,
        shape=tensor.shape,
        n_bytes=math.prod(tensor.shape) * _ITEM_BYTES[tensor.dtype],
    )
