"""How layers are cut by output units into slices, and which slices stay open inside.

The rules: as few slices as fit, as equal as possible; the smallest slices stay open, as many as fit; the others
stream through one buffer, the slot.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from cloister.compile.ir import Affine, Conv, Op
from cloister.errors import PlanError, UnsupportedModel
from cloister.units import format_bytes

__all__ = [
    "MAX_LANES",
    "Block",
    "Choice",
    "Footprint",
    "Piece",
    "check_limits",
    "choose",
    "find_blocks",
    "smallest_budget",
    "split_blocks",
    "up",
]

_SLICE_BYTES = 20
_SESSION_BYTES = 4096
#: Images that run side by side at most: each one more would save less than a sixteenth of the openings.
MAX_LANES = 16
#: Limits that keep an int32 accumulator from overflowing.
_MAX_TAPS = 65536
_MAX_BIAS = 2**30 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """The constants of one operation, or of several that share them.

    Attributes:
        layer: the layer's name; for an operation without one its output's name.
        op: the first of the operations.
    """

    layer: str
    op: Conv | Affine

    @property
    def n_units(self) -> int:
        """Number of output units (channels, neurons)."""
        return len(self.op.weight) if isinstance(self.op, Conv) else len(self.op.slope)

    @property
    def unit_bytes(self) -> int:
        """Bytes of one unit's constants in a slice."""
        if isinstance(self.op, Affine):
            return 8
        n_taps = int(self.op.weight[0].size)
        return 8 + n_taps if self.op.weight.dtype == np.int8 else 4 * (1 + n_taps)

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole block."""
        return self.n_units * self.unit_bytes

    def shares_with(self, other: Block) -> bool:
        """Whether both would give the same slices."""
        if self.layer != other.layer or type(self.op) is not type(other.op):
            return False
        pairs = zip(_arrays(self.op), _arrays(other.op), strict=False)
        return all(a is b or _same_bits(a, b) for a, b in pairs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """One slice of a block.

    Attributes:
        block: what it is cut from.
        first_unit: the first output unit in it.
        n_units: how many there are.
    """

    block: Block
    first_unit: int
    n_units: int

    @property
    def n_bytes(self) -> int:
        """Bytes of its plaintext."""
        return self.n_units * self.block.unit_bytes

    def plaintext(self) -> bytes:
        """What the format says that an open slice holds."""
        op, units = self.block.op, slice(self.first_unit, self.first_unit + self.n_units)
        if isinstance(op, Affine):
            return _little(op.slope[units], "<f4") + _little(op.shift[units], "<f4")
        weight = op.weight[units].reshape(self.n_units, -1)  # (n_units, KH * KW * C_in / groups)
        if op.multiplier is None:
            return _little(op.bias[units], "<f4") + _little(weight.T, "<f4")
        head = _little(op.multiplier[units], "<f4") + _little(op.bias[units], "<i4")
        return head + _little(weight, "<i1")


def _arrays(op: Conv | Affine) -> list[npt.NDArray[np.generic]]:
    if isinstance(op, Affine):
        return [op.slope, op.shift]
    return [op.weight, op.bias] if op.multiplier is None else [op.weight, op.bias, op.multiplier]


def _same_bits(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> bool:
    """Whether two arrays hold the same bytes: 0.0 and -0.0 differ, and a NaN equals itself."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    first, second = (np.ascontiguousarray(x).view(np.uint8) for x in (a, b))
    return bool(np.array_equal(first, second))


def _little(values: npt.NDArray[np.generic], dtype: str) -> bytes:
    return np.ascontiguousarray(values, dtype=dtype).tobytes()


def find_blocks(ops: Iterable[Op]) -> tuple[tuple[Block, ...], dict[Op, int]]:
    """The constants of operations.

    Args:
        ops: all operations of a program.

    Returns:
        The blocks, and the index of the block of each operation that has one. A module that is used twice shares its
        block if its constants are the same both times.
    """
    blocks: list[Block] = []
    block_of: dict[Op, int] = {}
    for op in ops:
        if not isinstance(op, Conv | Affine):
            continue
        block = Block(layer=op.layer or op.output, op=op)
        same = (i for i, other in enumerate(blocks) if block.shares_with(other))
        block_of[op] = next(same, len(blocks))
        if block_of[op] == len(blocks):
            blocks.append(block)
    return tuple(blocks), block_of


def check_limits(blocks: Iterable[Block]) -> None:
    """Refuses layers whose int8 sums could leave int32.

    Raises:
        UnsupportedModel: naming all of them.
    """
    problems = [problem for block in blocks for problem in _find_problems(block)]
    if problems:
        names = ", ".join(f"`{layer}`" for layer, _, _ in problems)
        hint = "keep these layers in float32 (--bits 32)"
        raise UnsupportedModel(f"int8 sums of {names} could overflow 32 bits", problems, hint)


def _find_problems(block: Block) -> Iterator[tuple[str, str, str]]:
    if isinstance(block.op, Affine) or block.op.multiplier is None:
        return
    n_taps = block.op.weight[0].size
    if n_taps > _MAX_TAPS:
        yield block.layer, "conv", f"expected at most {_MAX_TAPS} weights per output unit, but got {n_taps}"
    bias = int(np.abs(block.op.bias.astype(np.int64)).max())
    if bias > _MAX_BIAS:
        yield block.layer, "conv", f"expected |bias| of at most {_MAX_BIAS}, but got {bias}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a program needs whatever its slicing.

    Attributes:
        unsliced_bytes: of the program without its slice table.
        arena_bytes: of activations and scratch.
        blocks: what can be cut.
    """

    unsliced_bytes: int
    arena_bytes: int
    blocks: tuple[Block, ...]

    def inside_bytes(self, n_slices: int, resident_bytes: int, slot_bytes: int, lanes: int = 1) -> int:
        """Inside memory of the program with this slicing, as the format defines it."""
        program_bytes = self.unsliced_bytes + _SLICE_BYTES * n_slices
        return _SESSION_BYTES + up(program_bytes) + lanes * up(self.arena_bytes) + up(resident_bytes) + up(slot_bytes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """The slicing.

    Attributes:
        cuts: number of slices of each block.
        residents: indices of the slices that stay open.
        slot_bytes: of the buffer that the others stream through.
        lanes: images that run side by side, so that a streamed slice is opened once for all of them.
    """

    cuts: tuple[int, ...]
    residents: frozenset[int]
    slot_bytes: int
    lanes: int = 1


def choose(footprint: Footprint, budget_bytes: int | None, slicing: Literal["auto", "off"]) -> Choice:
    """Picks the slicing for a budget.

    Args:
        footprint: of the program.
        budget_bytes: inside memory that it may need; None for no limit.
        slicing: `auto`, or `off`: every layer is one slice.

    Raises:
        PlanError: if the program does not fit.
    """
    whole = (1,) * len(footprint.blocks)
    sizes = _slice_sizes(footprint, whole)
    everything = Choice(cuts=whole, residents=frozenset(range(len(sizes))), slot_bytes=0)
    if budget_bytes is None or _need(footprint, everything) <= budget_bytes:
        return everything
    cuts = whole if slicing == "off" else _choose_cuts(footprint, budget_bytes)
    choice = _fill_residents(footprint, cuts, budget_bytes)
    if _need(footprint, choice) > budget_bytes:
        raise _too_small(footprint, budget_bytes, slicing)
    return choice


def _need(footprint: Footprint, choice: Choice) -> int:
    sizes = _slice_sizes(footprint, choice.cuts)
    resident_bytes = sum(up(sizes[i]) for i in choice.residents)
    return footprint.inside_bytes(len(sizes), resident_bytes, choice.slot_bytes, choice.lanes)


def _streaming_need(footprint: Footprint, cuts: Sequence[int]) -> int:
    """Inside memory if every slice streams: the least with these cuts, since a resident only adds to it."""
    slot_bytes = max(
        (-(-b.n_units // n) * b.unit_bytes for b, n in zip(footprint.blocks, cuts, strict=True)), default=0
    )
    return footprint.inside_bytes(sum(cuts), 0, slot_bytes)


def _all_cuts(footprint: Footprint) -> Iterator[tuple[int, ...]]:
    """Every slicing worth a look: for each largest slice that there can be, as few slices as allow it.

    Fewest slices first. More slices shorten the buffer but lengthen the slice table, so the memory needed falls,
    then rises: no shortcut finds the least.
    """
    largest = {-(-b.n_units // n) * b.unit_bytes for b in footprint.blocks for n in range(1, b.n_units + 1)}
    if not largest:
        yield ()
    for slice_bytes in sorted(largest, reverse=True):
        if any(block.unit_bytes > slice_bytes for block in footprint.blocks):
            return
        yield tuple(-(-b.n_units // (slice_bytes // b.unit_bytes)) for b in footprint.blocks)


def _choose_cuts(footprint: Footprint, budget_bytes: int) -> tuple[int, ...]:
    for cuts in _all_cuts(footprint):
        if _streaming_need(footprint, cuts) <= budget_bytes:
            return cuts
    raise _too_small(footprint, budget_bytes, "auto")


def _fill_residents(footprint: Footprint, cuts: tuple[int, ...], budget_bytes: int) -> Choice:
    """Keeps the smallest slices open: each opening has a fixed cost, so that many small ones save the most."""
    sizes = _slice_sizes(footprint, cuts)
    slot_bytes = max(sizes, default=0)
    room = budget_bytes - footprint.inside_bytes(len(sizes), 0, slot_bytes)
    residents: set[int] = set()
    for index in sorted(range(len(sizes)), key=lambda i: (sizes[i], i)):
        room -= up(sizes[index])
        if room < 0:
            break
        residents.add(index)
    choice = Choice(cuts=cuts, residents=frozenset(residents), slot_bytes=slot_bytes)
    return _fill_lanes(footprint, choice, budget_bytes)


def _fill_lanes(footprint: Footprint, choice: Choice, budget_bytes: int) -> Choice:
    """What is still free goes to lanes."""
    free = budget_bytes - _need(footprint, choice)
    n_more = max(0, free) // up(max(1, footprint.arena_bytes))
    return dataclasses.replace(choice, lanes=min(1 + n_more, MAX_LANES))


def split_blocks(blocks: Sequence[Block], cuts: Sequence[int]) -> list[Piece]:
    """The slices of all blocks in index order, given the number of slices of each block."""
    return [
        Piece(block=block, first_unit=first, n_units=n_units)
        for block, cut in zip(blocks, cuts, strict=True)
        for first, n_units in _split_units(block.n_units, cut)
    ]


def _slice_sizes(footprint: Footprint, cuts: Sequence[int]) -> list[int]:
    return [piece.n_bytes for piece in split_blocks(footprint.blocks, cuts)]


def _split_units(n_units: int, n_slices: int) -> list[tuple[int, int]]:
    """(first, count) of each slice, as equal as possible, larger ones first."""
    base, n_larger = divmod(n_units, n_slices)
    counts = [base + (i < n_larger) for i in range(n_slices)]
    return list(zip(itertools.accumulate(counts, initial=0), counts, strict=False))


def smallest_budget(footprint: Footprint) -> int:
    """The least budget in bytes for which `choose` finds a slicing with `auto`."""
    return min(_streaming_need(footprint, cuts) for cuts in _all_cuts(footprint))


def _too_small(footprint: Footprint, budget_bytes: int, slicing: Literal["auto", "off"]) -> PlanError:
    least = smallest_budget(footprint)
    if slicing == "auto":
        return PlanError(
            f"expected a budget of at least {least} bytes for these layers, but got {budget_bytes}",
            f"give a budget of {least} bytes ({format_bytes(least)}) or more, or keep fewer layers inside",
        )
    whole = (1,) * len(footprint.blocks)
    least_whole = _streaming_need(footprint, whole)
    free = max(0, budget_bytes - footprint.inside_bytes(len(whole), 0, 0))
    layers = ", ".join(f"`{b.layer}` ({b.n_bytes} bytes)" for b in footprint.blocks if up(b.n_bytes) > free)
    subject = f"layers do not fit whole: {layers}" if layers else "activations do not fit"
    return PlanError(
        f"{subject}; a budget of {budget_bytes} bytes leaves {free} bytes for one layer",
        f"give a budget of {least_whole} bytes or more; with --slice auto, {least} bytes are enough",
    )


def up(n_bytes: int) -> int:
    """Rounds up to a multiple of 64."""
    return -(-n_bytes // 64) * 64
