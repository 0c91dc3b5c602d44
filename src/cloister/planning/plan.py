"""The plan: which layers are inside, in how many slices, and why."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["BoardPlan", "LayerPlan", "Plan", "Slicing"]

Slicing = Literal["auto", "off"]


class LayerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The choice for one layer.

    Attributes:
        name: the layer's PyTorch name.
        op: `conv`, `linear` or `affine` (a batch norm by itself).
        inside: whether the layer is inside.
        n_slices: number of slices (inside layers; 0 outside).
        weight_bytes: bytes of its weights in the program.
        resident_bytes: how many of them stay open inside between calls.
        reason: why it is where it is, and why it is sliced so.
    """

    name: str
    op: str
    inside: bool
    n_slices: int
    weight_bytes: int
    resident_bytes: int
    reason: str


class BoardPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The board that a plan is made for.

    Attributes:
        name: as in the board profiles.
        title: for people.
        demonstration: why the inside is not safe there from whoever has the board; empty if nothing is known.
    """

    name: str
    title: str
    demonstration: tuple[str, ...]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What goes inside.

    Attributes:
        inside: the request as given (`all`, `none`, `last:3`, names or globs).
        slicing: `auto`, or `off` (a layer that does not fit whole is refused).
        bits: 8 or 32.
        budget_bytes: inside memory that may be used, or None for no limit.
        inside_bytes: inside memory that is needed (0 if nothing is inside).
        lanes: images that run side by side inside, each with activations of its own: a slice that streams is opened
            once for all of them; 1 if nothing is inside.
        smallest_budget_bytes: the least budget that this choice of layers could run in.
        seed: of the calibration sample.
        board: what it is planned for, or None: for anything that has the memory.
        layers: one entry for each layer, in the order of first use.
    """

    inside: str
    slicing: Slicing
    bits: Literal[8, 32]
    budget_bytes: int | None
    inside_bytes: int
    lanes: int
    smallest_budget_bytes: int
    seed: int
    board: BoardPlan | None = None
    layers: tuple[LayerPlan, ...]
