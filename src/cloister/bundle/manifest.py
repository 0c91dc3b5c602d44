"""The manifest of a bundle: what is known of it in the clear. Format: `docs/spec/bundle.md`."""

from __future__ import annotations

from typing import Literal

import msgspec

from cloister.boards import Suite
from cloister.planning.plan import Plan

__all__ = ["Manifest", "Part", "SliceEntry", "Step", "TensorInfo"]


class TensorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor that enters or leaves a stage.

    Attributes:
        name: unique in the bundle.
        dtype: `int8` or `float32`.
        shape: without the batch axis, in PyTorch's order.
        scale: int8 only: real value = (q - zero_point) * scale.
        zero_point: int8 only.
    """

    name: str
    dtype: Literal["int8", "float32"]
    shape: tuple[int, ...]
    scale: float = 1.0
    zero_point: int = 0


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of the model, in the order of running.

    Attributes:
        world: `inside`, `outside` (this process, same interpreter), or `torch` (an exported program).
        index: stage of the world's program, or for `torch` the index among the parts of that kind.
        inputs: names of the tensors that go in.
        outputs: names of the tensors that come out.
        layers: names of the layers with parameters in it.
    """

    world: Literal["inside", "outside", "torch"]
    index: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[str, ...]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A clear part of the outside section.

    Attributes:
        kind: `program`, `constants` or `torch`.
        offset: bytes from the start of the section.
        n_bytes: length.
        sha256: of its bytes, in hexadecimal.
    """

    kind: Literal["program", "constants", "torch"]
    offset: int
    n_bytes: int
    sha256: str


class SliceEntry(msgspec.Struct, frozen=True, array_like=True):
    """One inside slice, in the document as an array.

    Attributes:
        layer: the layer's name.
        first_unit: its first output unit.
        n_units: number of output units.
        n_bytes: bytes of the open slice; sealed it has 16 more.
        resident: whether it stays open inside between calls.
    """

    layer: str
    first_unit: int
    n_units: int
    n_bytes: int
    resident: bool


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that is known of a bundle without opening it.

    Attributes:
        format: version of this document, 1.
        cloister: version of the package that made it.
        model: the target as given.
        suite: cipher that program and slices are sealed with.
        input: name of the model's input among `tensors`.
        output: name of the model's output among `tensors`.
        tensors: the model's input and output, and all that enters or leaves a stage.
        steps: the stages in order.
        plan: what is inside, and why.
        parts: the outside parts.
        slices: the inside slices in index order.
    """

    format: Literal[1] = 1
    cloister: str
    model: str
    suite: Suite
    input: str
    output: str
    tensors: tuple[TensorInfo, ...]
    steps: tuple[Step, ...]
    plan: Plan
    parts: tuple[Part, ...]
    slices: tuple[SliceEntry, ...]
