"""Programs: stages lowered to flat operations with a static memory plan, and the slices that they use.

Format and meaning: `docs/spec/program.md`. What happens here:

1. Each convolution or affine operation gets a *block*: its constants, which can be cut by output units.
2. `_choose` decides how many slices each block is cut into, and which of them stay open inside.
3. `_encode` writes header, tensors, slices, operations and stages.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from cloister.compile.ir import (
    AdaptiveAvgPool,
    Add,
    Affine,
    Alias,
    AvgPool,
    Clamp,
    Conv,
    Copy,
    DType,
    Graph,
    MaxPool,
    Op,
    Permute,
    Softmax,
    Tensor,
)
from cloister.compile.memory import MemoryPlan, plan_memory
from cloister.errors import PlanError, UnsupportedModel

__all__ = [
    "Program",
    "SliceInfo",
    "Stage",
    "build_inside",
    "build_outside",
    "constants",
    "smallest_budget",
]

_MAGIC = int.from_bytes(b"CLPR", "little")
_VERSION = 1
_HEADER_BYTES = 64
_SLICE_BYTES = 20
_STREAMED = 0xFFFFFFFF
_SESSION_BYTES = 4096
_SEAL_BYTES = 16
_MAX_WORD = 0xFFFFFFFF
#: Limits that keep an int32 accumulator from overflowing.
_MAX_TAPS = 65536
_MAX_BIAS = 2**30 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A maximal run of consecutive operations in one world.

    Attributes:
        ops: the operations, in the order of running.
        inputs: names of the tensors that are made before and read here.
        outputs: names of the tensors that are made here and read behind it (or are the model's output).
    """

    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SliceInfo:
    """A group of output units of one layer.

    Attributes:
        layer: the layer's name; for an operation without one its output's name.
        first_unit: the first output unit (channel, neuron) in it.
        n_units: how many there are.
        resident: whether it stays open inside between calls.
        data: its plaintext.
    """

    layer: str
    first_unit: int
    n_units: int
    resident: bool
    data: bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A lowered program.

    Attributes:
        data: the program in the binary format.
        slices: its slices in index order.
        inside_bytes: inside memory that it needs, as the format defines it.
    """

    data: bytes
    slices: tuple[SliceInfo, ...]
    inside_bytes: int


def build_inside(
    graph: Graph,
    stages: Sequence[Stage],
    *,
    budget_bytes: int | None,
    slicing: Literal["auto", "off"],
) -> Program:
    """Lowers the inside stages to the program that is sealed.

    Without a budget every layer is one slice and all of them stay open. With one, a layer is cut by output units
    into as few slices as fit, the smallest slices stay open, as many as fit, and the rest stream through one buffer.

    Args:
        graph: the model.
        stages: its inside stages, at least one.
        budget_bytes: inside memory that the program may need; None for no limit.
        slicing: `auto`, or `off`: every layer is one slice.

    Raises:
        PlanError: if the program does not fit into the budget; the message holds the smallest one that works.
        UnsupportedModel: if a layer breaks a limit of the format.
    """
    lowered = _lower(graph, stages)
    choice = _choose(lowered, budget_bytes, slicing)
    return _emit(lowered, choice, budget_bytes=budget_bytes or 0, sealed=True)


def build_outside(graph: Graph, stages: Sequence[Stage]) -> Program:
    """Lowers the outside stages: one slice for each layer, all read in place from the clear constants.

    Args:
        graph: the model.
        stages: its outside stages that can be lowered, at least one.

    Raises:
        UnsupportedModel: if a layer breaks a limit of the format.
    """
    lowered = _lower(graph, stages)
    choice = _Choice(cuts=(1,) * len(lowered.blocks), residents=frozenset(), slot_bytes=0)
    return _emit(lowered, choice, budget_bytes=0, sealed=False)


def constants(program: Program) -> bytes:
    """The clear slices of an outside program, each at its store offset."""
    return b"".join(piece.data + bytes(-len(piece.data) % 16) for piece in program.slices)


def smallest_budget(graph: Graph, stages: Sequence[Stage]) -> int:
    """The least budget in bytes with which `build_inside(slicing="auto")` succeeds.

    Args:
        graph: the model.
        stages: its inside stages, at least one.

    Raises:
        UnsupportedModel: if a layer breaks a limit of the format.
    """
    return _smallest_budget(_lower(graph, stages))


# --- Blocks: the constants of an operation -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Block:
    """The constants of one operation, or of several that share them."""

    layer: str
    op: Conv | Affine

    @property
    def n_units(self) -> int:
        return len(self.op.weight) if isinstance(self.op, Conv) else len(self.op.slope)

    @property
    def unit_bytes(self) -> int:
        if isinstance(self.op, Affine):
            return 8
        n_taps = int(self.op.weight[0].size)
        return 8 + n_taps if self.op.weight.dtype == np.int8 else 4 * (1 + n_taps)

    @property
    def n_bytes(self) -> int:
        return self.n_units * self.unit_bytes

    def slice_bytes(self, first: int, n_units: int) -> bytes:
        """Plaintext of the slice with the units first … first + n_units - 1."""
        units = slice(first, first + n_units)
        if isinstance(self.op, Affine):
            return _little(self.op.slope[units], "<f4") + _little(self.op.shift[units], "<f4")
        weight = self.op.weight[units].reshape(n_units, -1)  # (n_units, KH * KW * C_in / groups)
        if self.op.multiplier is None:
            return _little(self.op.bias[units], "<f4") + _little(weight.T, "<f4")
        head = _little(self.op.multiplier[units], "<f4") + _little(self.op.bias[units], "<i4")
        return head + _little(weight, "<i1")

    def shares_with(self, other: _Block) -> bool:
        """Whether both would give the same slices."""
        if self.layer != other.layer or type(self.op) is not type(other.op):
            return False
        pairs = zip(_arrays(self.op), _arrays(other.op), strict=False)
        return all(a is b or _same_bits(a, b) for a, b in pairs)


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


def _find_blocks(stages: Iterable[Stage]) -> tuple[tuple[_Block, ...], dict[Op, int]]:
    """The blocks, and the block of each operation that has one. A module used twice shares its block if it can."""
    blocks: list[_Block] = []
    block_of: dict[Op, int] = {}
    for stage in stages:
        for op in stage.ops:
            if not isinstance(op, Conv | Affine):
                continue
            block = _Block(layer=op.layer or op.output, op=op)
            same = (i for i, other in enumerate(blocks) if block.shares_with(other))
            block_of[op] = next(same, len(blocks))
            if block_of[op] == len(blocks):
                blocks.append(block)
    return tuple(blocks), block_of


def _check_limits(blocks: Iterable[_Block]) -> None:
    problems = [problem for block in blocks for problem in _find_problems(block)]
    if problems:
        names = ", ".join(f"`{layer}`" for layer, _, _ in problems)
        hint = "Keep these layers in float32 (--bits 32)."
        raise UnsupportedModel(f"int8 sums of {names} could overflow 32 bits", problems, hint)


def _find_problems(block: _Block) -> Iterator[tuple[str, str, str]]:
    if isinstance(block.op, Affine) or block.op.multiplier is None:
        return
    n_taps = block.op.weight[0].size
    if n_taps > _MAX_TAPS:
        yield block.layer, "conv", f"expected at most {_MAX_TAPS} weights per output unit, but got {n_taps}"
    bias = int(np.abs(block.op.bias.astype(np.int64)).max())
    if bias > _MAX_BIAS:
        yield block.layer, "conv", f"expected |bias| of at most {_MAX_BIAS}, but got {bias}"


# --- Lowering: all that does not depend on the slicing -----------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Lowered:
    graph: Graph
    stages: tuple[Stage, ...]
    memory: tuple[MemoryPlan, ...]
    blocks: tuple[_Block, ...]
    block_of: dict[Op, int]

    @property
    def arena_bytes(self) -> int:
        return max((plan.arena_bytes for plan in self.memory), default=0)

    @functools.cached_property
    def unsliced_bytes(self) -> int:
        """Bytes of the program without its slice table."""
        tables = _encode_tables(self, (1,) * len(self.blocks))
        return _HEADER_BYTES + 4 * (len(tables.tensors) + len(tables.ops) + len(tables.stages))

    def inside_bytes(self, n_slices: int, resident_bytes: int, slot_bytes: int) -> int:
        """Inside memory of the program with this slicing, as the format defines it."""
        sections = (
            self.unsliced_bytes + _SLICE_BYTES * n_slices,
            self.arena_bytes,
            resident_bytes,
            slot_bytes,
        )
        return _SESSION_BYTES + sum(map(_up, sections))


def _lower(graph: Graph, stages: Sequence[Stage]) -> _Lowered:
    blocks, block_of = _find_blocks(stages)
    _check_limits(blocks)
    memory = tuple(plan_memory(graph.tensors, s.ops, s.inputs, s.outputs) for s in stages)
    return _Lowered(graph=graph, stages=tuple(stages), memory=memory, blocks=blocks, block_of=block_of)


# --- Choosing slices ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Choice:
    """The slicing.

    Attributes:
        cuts: number of slices of each block.
        residents: indices of the slices that stay open.
        slot_bytes: of the buffer that the others stream through.
    """

    cuts: tuple[int, ...]
    residents: frozenset[int]
    slot_bytes: int


def _choose(lowered: _Lowered, budget_bytes: int | None, slicing: Literal["auto", "off"]) -> _Choice:
    whole = (1,) * len(lowered.blocks)
    sizes = _slice_sizes(lowered, whole)
    everything = _Choice(cuts=whole, residents=frozenset(range(len(sizes))), slot_bytes=0)
    if budget_bytes is None or _need(lowered, everything) <= budget_bytes:
        return everything
    cuts = whole if slicing == "off" else _choose_cuts(lowered, budget_bytes)
    choice = _fill_residents(lowered, cuts, budget_bytes)
    if _need(lowered, choice) > budget_bytes:
        raise _too_small(lowered, budget_bytes, slicing)
    return choice


def _need(lowered: _Lowered, choice: _Choice) -> int:
    sizes = _slice_sizes(lowered, choice.cuts)
    resident_bytes = sum(_up(sizes[i]) for i in choice.residents)
    return lowered.inside_bytes(len(sizes), resident_bytes, choice.slot_bytes)


def _streaming_need(lowered: _Lowered, cuts: Sequence[int]) -> int:
    """Inside memory if every slice streams: the least with these cuts, since a resident only adds to it."""
    slot_bytes = max((-(-b.n_units // n) * b.unit_bytes for b, n in zip(lowered.blocks, cuts, strict=True)), default=0)
    return lowered.inside_bytes(sum(cuts), 0, slot_bytes)


def _all_cuts(lowered: _Lowered) -> Iterator[tuple[int, ...]]:
    """Every slicing worth a look: for each largest slice that there can be, as few slices as allow it.

    Fewest slices first. More slices shorten the buffer but lengthen the slice table, so the memory needed falls,
    then rises: no shortcut finds the least.
    """
    largest = {-(-b.n_units // n) * b.unit_bytes for b in lowered.blocks for n in range(1, b.n_units + 1)}
    if not largest:
        yield ()
    for slice_bytes in sorted(largest, reverse=True):
        if any(block.unit_bytes > slice_bytes for block in lowered.blocks):
            return
        yield tuple(-(-b.n_units // (slice_bytes // b.unit_bytes)) for b in lowered.blocks)


def _choose_cuts(lowered: _Lowered, budget_bytes: int) -> tuple[int, ...]:
    for cuts in _all_cuts(lowered):
        if _streaming_need(lowered, cuts) <= budget_bytes:
            return cuts
    raise _too_small(lowered, budget_bytes, "auto")


def _fill_residents(lowered: _Lowered, cuts: tuple[int, ...], budget_bytes: int) -> _Choice:
    """Keeps the smallest slices open: each opening has a fixed cost, so that many small ones save the most."""
    sizes = _slice_sizes(lowered, cuts)
    slot_bytes = max(sizes, default=0)
    room = budget_bytes - lowered.inside_bytes(len(sizes), 0, slot_bytes)
    residents: set[int] = set()
    for index in sorted(range(len(sizes)), key=lambda i: (sizes[i], i)):
        room -= _up(sizes[index])
        if room < 0:
            break
        residents.add(index)
    return _Choice(cuts=cuts, residents=frozenset(residents), slot_bytes=slot_bytes)


def _slice_sizes(lowered: _Lowered, cuts: Sequence[int]) -> list[int]:
    """Bytes of each slice, in index order."""
    pairs = zip(lowered.blocks, cuts, strict=True)
    return [n * block.unit_bytes for block, cut in pairs for _, n in _split_units(block.n_units, cut)]


def _split_units(n_units: int, n_slices: int) -> list[tuple[int, int]]:
    """(first, count) of each slice, as equal as possible, larger ones first."""
    base, n_larger = divmod(n_units, n_slices)
    counts = [base + (i < n_larger) for i in range(n_slices)]
    return list(zip(itertools.accumulate(counts, initial=0), counts, strict=False))


def _smallest_budget(lowered: _Lowered) -> int:
    return min(_streaming_need(lowered, cuts) for cuts in _all_cuts(lowered))


def _too_small(lowered: _Lowered, budget_bytes: int, slicing: Literal["auto", "off"]) -> PlanError:
    least = _smallest_budget(lowered)
    if slicing == "auto":
        return PlanError(
            f"expected a budget of at least {least} bytes for these layers, but got {budget_bytes}",
            f"Give a budget of {least} bytes or more, or keep fewer layers inside.",
        )
    whole = (1,) * len(lowered.blocks)
    least_whole = _streaming_need(lowered, whole)
    free = max(0, budget_bytes - lowered.inside_bytes(len(whole), 0, 0))
    layers = ", ".join(f"`{b.layer}` ({b.n_bytes} bytes)" for b in lowered.blocks if _up(b.n_bytes) > free)
    subject = f"layers do not fit whole: {layers}" if layers else "activations do not fit"
    return PlanError(
        f"{subject}; a budget of {budget_bytes} bytes leaves {free} bytes for one layer",
        f"Give a budget of {least_whole} bytes or more; with --slicing auto, {least} bytes are enough.",
    )


# --- Writing -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class _Tables:
    """Words of three sections."""

    tensors: list[int] = dataclasses.field(default_factory=list)
    ops: list[int] = dataclasses.field(default_factory=list)
    stages: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Place:
    """What an operation's operands refer to.

    Attributes:
        ids: tensor ids by name.
        clamp: words of `lo` and `hi`.
        slices: index of the first slice, number of slices.
        scratch: offset in the arena.
    """

    ids: dict[str, int]
    clamp: list[int]
    slices: tuple[int, int]
    scratch: int


def _emit(lowered: _Lowered, choice: _Choice, *, budget_bytes: int, sealed: bool) -> Program:
    """Writes the program: the header, and the sections behind it."""
    tables = _encode_tables(lowered, choice.cuts)
    sizes = _slice_sizes(lowered, choice.cuts)
    resident_bytes = sum(_up(sizes[i]) for i in choice.residents)
    sections = (tables.tensors, _encode_slices(lowered, choice, sealed=sealed), tables.ops, tables.stages)
    header = [
        _MAGIC,
        _VERSION,
        _HEADER_BYTES + 4 * sum(map(len, sections)),
        lowered.arena_bytes,
        len(tables.tensors) // 6,
        len(sizes),
        len(tables.ops),
        len(lowered.stages),
        len(tables.stages),
        resident_bytes,
        choice.slot_bytes,
        min(budget_bytes, _MAX_WORD),
        *(0, 0, 0, 0),
    ]
    return Program(
        data=_pack(itertools.chain(header, *sections)),
        slices=_make_slices(lowered, choice),
        inside_bytes=lowered.inside_bytes(len(sizes), resident_bytes, choice.slot_bytes),
    )


def _pack(words: Iterable[int]) -> bytes:
    values = np.fromiter(words, dtype=np.int64)
    if values.max() > _MAX_WORD:
        raise PlanError(
            "expected memory and constants of less than 4 GiB, but got more",
            "Use int8 (--bits 8), or a smaller model.",
        )
    return values.astype("<u4").tobytes()  # keeps the low 32 bits: two's complement


def _make_slices(lowered: _Lowered, choice: _Choice) -> tuple[SliceInfo, ...]:
    pieces = (
        (block, first, n_units)
        for block, cut in zip(lowered.blocks, choice.cuts, strict=True)
        for first, n_units in _split_units(block.n_units, cut)
    )
    return tuple(
        SliceInfo(
            layer=block.layer,
            first_unit=first,
            n_units=n_units,
            resident=index in choice.residents,
            data=block.slice_bytes(first, n_units),
        )
        for index, (block, first, n_units) in enumerate(pieces)
    )


def _encode_slices(lowered: _Lowered, choice: _Choice, *, sealed: bool) -> list[int]:
    words: list[int] = []
    place = store_offset = 0
    pairs = zip(lowered.blocks, choice.cuts, strict=True)
    units = [(block, *piece) for block, cut in pairs for piece in _split_units(block.n_units, cut)]
    for index, (block, first, n_units) in enumerate(units):
        n_bytes = n_units * block.unit_bytes
        resident = index in choice.residents
        words += [first, n_units, n_bytes, place if resident else _STREAMED, store_offset]
        place += _up(n_bytes) if resident else 0
        store_offset += n_bytes + (_SEAL_BYTES if sealed else -n_bytes % 16)
    return words


def _encode_tables(lowered: _Lowered, cuts: Sequence[int]) -> _Tables:
    """All sections but the slice table. Only the slice operands depend on `cuts`, never a length."""
    starts = list(itertools.accumulate(cuts, initial=0))
    slices = {op: (starts[block], cuts[block]) for op, block in lowered.block_of.items()}
    tables = _Tables()
    for stage, memory in zip(lowered.stages, lowered.memory, strict=True):
        _encode_stage(lowered.graph, stage, memory, slices, tables)
    return tables


def _encode_stage(
    graph: Graph, stage: Stage, memory: MemoryPlan, slices: dict[Op, tuple[int, int]], tables: _Tables
) -> None:
    first_id = len(tables.tensors) // 6
    ids = {name: first_id + i for i, name in enumerate(memory.tensors)}
    for name, offset in memory.tensors.items():
        tables.tensors += _encode_tensor(graph.tensors[name], offset)
    first_word = len(tables.ops)
    for index, op in enumerate(stage.ops):
        place = _Place(
            ids=ids,
            clamp=_clamp(op, graph.tensors[op.output].dtype),
            slices=slices.get(op, (0, 0)),
            scratch=memory.scratch.get(index, 0),
        )
        tables.ops += _encode_op(op, place)
    tables.stages += [first_word, len(tables.ops) - first_word, len(stage.inputs), len(stage.outputs)]
    tables.stages += [ids[name] for name in (*stage.inputs, *stage.outputs)]


def _encode_tensor(tensor: Tensor, offset: int) -> list[int]:
    if tensor.dtype == "int8":
        return [offset, 1, *tensor.hwc, tensor.zero_point]
    return [offset, 2, *tensor.hwc, 0]


def _clamp(op: Op, dtype: DType) -> list[int]:
    """The words of an operation's clamp, none for an operation without one."""
    clamp: Clamp | None = getattr(op, "clamp", None)
    if clamp is None:
        return []
    return [int(bound) if dtype == "int8" else _float_word(bound) for bound in clamp]


def _float_word(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def _encode_op(op: Op, place: _Place) -> list[int]:
    if isinstance(op, Alias):
        return []
    opcode, operands = _operands(op, place)
    return [opcode, 2 + len(operands), *operands]


@functools.singledispatch
def _operands(op: Op, place: _Place) -> tuple[int, list[int]]:
    """Opcode and operand words of an operation."""
    raise TypeError(f"{type(op).__name__} cannot be lowered: it belongs into no stage")


def _ends(op: Op, place: _Place) -> list[int]:
    """Ids of the inputs, then of the output."""
    return [place.ids[name] for name in (*op.inputs, op.output)]


@_operands.register
def _(op: Conv, place: _Place) -> tuple[int, list[int]]:
    window = [*op.weight.shape[1:3], *op.stride, *op.padding, *op.dilation]
    return 1, [*_ends(op, place), *place.slices, *window, op.groups, place.scratch, *place.clamp]


@_operands.register
def _(op: MaxPool, place: _Place) -> tuple[int, list[int]]:
    window = [*op.kernel, *op.stride, *op.padding, *op.dilation]
    return 2, [*_ends(op, place), *window, *place.clamp]


@_operands.register
def _(op: AvgPool, place: _Place) -> tuple[int, list[int]]:
    window = [*op.kernel, *op.stride, *op.padding]
    count = [int(op.count_padding), op.divisor, _float_word(op.multiplier)]
    return 3, [*_ends(op, place), *window, *count, *place.clamp]


@_operands.register
def _(op: AdaptiveAvgPool, place: _Place) -> tuple[int, list[int]]:
    return 4, [*_ends(op, place), _float_word(op.multiplier), *place.clamp]


@_operands.register
def _(op: Add, place: _Place) -> tuple[int, list[int]]:
    return 5, [*_ends(op, place), *map(_float_word, op.multipliers), *place.clamp]


@_operands.register
def _(op: Affine, place: _Place) -> tuple[int, list[int]]:
    return 6, [*_ends(op, place), *place.slices, *place.clamp]


@_operands.register
def _(op: Copy, place: _Place) -> tuple[int, list[int]]:
    part = [op.outer, op.inner, op.out_stride, op.out_offset]
    return 7, [*_ends(op, place), *part, _float_word(op.multiplier), *place.clamp]


@_operands.register
def _(op: Permute, place: _Place) -> tuple[int, list[int]]:
    return 8, [*_ends(op, place), op.rows, op.cols]


@_operands.register
def _(op: Softmax, place: _Place) -> tuple[int, list[int]]:
    return 9, _ends(op, place)


def _up(n_bytes: int) -> int:
    return -(-n_bytes // 64) * 64
