"""The constants of a program's layers, and how they are cut by output units into slices."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from cloister.compile.ir import Affine, Conv, Op
from cloister.compile.packing import is_depthwise, pack_units, packed_taps, up4
from cloister.errors import UnsupportedModel

__all__ = ["Block", "Piece", "check_limits", "find_blocks", "split_blocks", "split_steps"]

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
    def step(self) -> int:
        """Units that are cut together: 4 of int8, which the packed weights hold side by side, or a small group."""
        if isinstance(self.op, Affine) or self.op.multiplier is None or is_depthwise(self.op):
            return 1
        group = self.n_units // self.op.groups
        return 4 if self.op.groups == 1 or group % 4 == 0 else group

    @property
    def grain(self) -> int:
        """Steps that a kernel takes at once, so that a slice with a multiple of them wastes nothing."""
        return 4 if self.step == 4 else 1

    @property
    def n_steps(self) -> int:
        """Number of steps in which it can be cut."""
        return -(-self.n_units // self.step)

    @property
    def step_bytes(self) -> int:
        """Bytes of one step's constants in a slice."""
        if isinstance(self.op, Affine):
            return 8
        if self.op.multiplier is None:
            return 4 * (1 + int(self.op.weight[0].size))
        if is_depthwise(self.op):
            return 12 + int(self.op.weight[0].size)
        return up4(self.step) * (12 + packed_taps(self.op))

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole block."""
        return self.n_steps * self.step_bytes

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
        return -(-self.n_units // self.block.step) * self.block.step_bytes

    def plaintext(self) -> bytes:
        """What the format says that an open slice holds."""
        op = self.block.op
        if isinstance(op, Affine):
            units = slice(self.first_unit, self.first_unit + self.n_units)
            return _little(op.slope[units], "<f4") + _little(op.shift[units], "<f4")
        return pack_units(op, self.first_unit, self.n_units)


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


def split_blocks(blocks: Sequence[Block], cuts: Sequence[int]) -> list[Piece]:
    """The slices of all blocks in index order, given the number of slices of each block."""
    return [
        Piece(block=block, first_unit=first, n_units=n_units)
        for block, cut in zip(blocks, cuts, strict=True)
        for first, n_units in _split_units(block, cut)
    ]


def split_steps(block: Block, n_slices: int) -> list[int]:
    """Steps of each slice of a block: as equal as possible, in whole grains if the largest is; larger ones first."""
    largest = -(-block.n_steps // n_slices)
    grain = block.grain if largest % block.grain == 0 else 1
    base, n_larger = divmod(-(-block.n_steps // grain), n_slices)
    counts = [grain * (base + (i < n_larger)) for i in range(n_slices)]
    counts[-1] -= sum(counts) - block.n_steps
    return counts


def _split_units(block: Block, n_slices: int) -> list[tuple[int, int]]:
    """(first, count) of each slice."""
    ends = itertools.accumulate(split_steps(block, n_slices))
    bounds = [0, *(min(end * block.step, block.n_units) for end in ends)]
    return [(first, end - first) for first, end in itertools.pairwise(bounds)]
