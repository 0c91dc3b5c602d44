"""Programs: stages lowered to flat operations with a static memory plan, and the slices that they use.

Format and meaning: `docs/spec/program.md`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np

from cloister.compile import choice as choice_of
from cloister.compile.choice import PAGE_BYTES, Choice, Footprint, up, up_page
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
from cloister.compile.packing import gathered_bytes
from cloister.compile.slicing import Block, Piece, check_limits, find_blocks, split_blocks
from cloister.errors import PlanError

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
_STREAMED = 0xFFFFFFFF
_SEAL_BYTES = 16
_MAX_WORD = 0xFFFFFFFF


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
        lanes: images that run side by side.
    """

    data: bytes
    slices: tuple[SliceInfo, ...]
    inside_bytes: int
    lanes: int


def build_inside(
    graph: Graph,
    stages: Sequence[Stage],
    *,
    budget_bytes: int | None,
    slicing: Literal["auto", "off"],
    call_bytes: int | None = None,
) -> Program:
    """Lowers the inside stages to the program that is sealed.

    Without a budget every layer is one slice and all of them stay open. With one, layers are cut by output units, the
    smallest slices stay open, as many as fit, and the rest stream through one buffer: `compile/choice.py` chooses.

    Args:
        graph: the model.
        stages: its inside stages, at least one.
        budget_bytes: inside memory that the program may need; None for no limit.
        slicing: `auto`, or `off`: every layer is one slice.
        call_bytes: what the parameters of one call may have together, each rounded up to 4096; None for no limit.

    Raises:
        PlanError: if the program does not fit into the budget or into a call; the message holds the numbers.
        UnsupportedModel: if a layer breaks a limit of the format.
    """
    lowered = _lower(graph, stages)
    choice = choice_of.choose(lowered.footprint(call_bytes), budget_bytes, slicing)
    program = _emit(lowered, choice, budget_bytes=budget_bytes or 0, sealed=True)
    _check_load(len(program.data) + _SEAL_BYTES, call_bytes)
    return program


def _check_load(sealed_bytes: int, call_bytes: int | None) -> None:
    """Refuses a program that does not fit into the call that loads it, beside the load block and its answer."""
    if call_bytes is not None and up_page(sealed_bytes) + 2 * PAGE_BYTES > call_bytes:
        raise PlanError(
            f"expected a sealed program of at most {call_bytes // PAGE_BYTES * PAGE_BYTES - 2 * PAGE_BYTES} bytes, "
            f"which one call can carry, but got {sealed_bytes}",
            "keep fewer layers inside",
        )


def build_outside(graph: Graph, stages: Sequence[Stage]) -> Program:
    """Lowers the outside stages: one slice for each layer, all read in place from the clear constants.

    Args:
        graph: the model.
        stages: its outside stages that can be lowered, at least one.

    Raises:
        UnsupportedModel: if a layer breaks a limit of the format.
    """
    lowered = _lower(graph, stages)
    choice = Choice(cuts=(1,) * len(lowered.blocks), residents=frozenset(), slot_bytes=0)
    return _emit(lowered, choice, budget_bytes=0, sealed=False)


def constants(program: Program) -> bytes:
    """The clear slices of an outside program, each at its store offset."""
    return b"".join(piece.data + bytes(-len(piece.data) % 64) for piece in program.slices)


def smallest_budget(graph: Graph, stages: Sequence[Stage], call_bytes: int | None = None) -> int:
    """The least budget in bytes with which `build_inside(slicing="auto")` succeeds.

    Args:
        graph: the model.
        stages: its inside stages, at least one.
        call_bytes: see `build_inside`.

    Raises:
        UnsupportedModel: if a layer breaks a limit of the format.
    """
    return choice_of.smallest_budget(_lower(graph, stages).footprint(call_bytes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Lowered:
    """All that does not depend on the slicing."""

    graph: Graph
    stages: tuple[Stage, ...]
    memory: tuple[MemoryPlan, ...]
    blocks: tuple[Block, ...]
    block_of: dict[Op, int]

    @property
    def arena_bytes(self) -> int:
        return max((plan.arena_bytes for plan in self.memory), default=0)

    def footprint(self, call_bytes: int | None = None) -> Footprint:
        tables = _encode_tables(self, (1,) * len(self.blocks))
        n_words = len(tables.tensors) + len(tables.ops) + len(tables.stages)
        return Footprint(
            unsliced_bytes=_HEADER_BYTES + 4 * n_words,
            arena_bytes=self.arena_bytes,
            blocks=self.blocks,
            gathered=self._over_convs(gathered_bytes),
            products=self._over_convs(_step_products),
            payloads=tuple(self._n_bytes((*s.inputs, *s.outputs)) for s in self.stages),
            call_bytes=call_bytes,
        )

    def _over_convs(self, count: Callable[[Conv, Tensor, Tensor], int]) -> tuple[int, ...]:
        """For each block the sum of what is counted for its convolutions, given their input and output."""
        sums = [0] * len(self.blocks)
        for op, block in self.block_of.items():
            if isinstance(op, Conv):
                sums[block] += count(op, self.graph.tensors[op.inputs[0]], self.graph.tensors[op.output])
        return tuple(sums)

    def _n_bytes(self, names: Iterable[str]) -> int:
        return sum(self.graph.tensors[name].n_bytes for name in names)


def _step_products(op: Conv, source: Tensor, output: Tensor) -> int:
    """Multiply-adds of the four units of a step of int8."""
    height, width, _ = output.hwc
    return 4 * height * width * int(op.weight[0].size)


def _lower(graph: Graph, stages: Sequence[Stage]) -> _Lowered:
    blocks, block_of = find_blocks(op for stage in stages for op in stage.ops)
    check_limits(blocks)
    memory = tuple(plan_memory(graph.tensors, s.ops, s.inputs, s.outputs) for s in stages)
    return _Lowered(graph=graph, stages=tuple(stages), memory=memory, blocks=blocks, block_of=block_of)


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


def _emit(lowered: _Lowered, choice: Choice, *, budget_bytes: int, sealed: bool) -> Program:
    """Writes the program: the header, and the sections behind it."""
    tables = _encode_tables(lowered, choice.cuts)
    pieces = split_blocks(lowered.blocks, choice.cuts)
    resident_bytes = sum(up(pieces[i].n_bytes) for i in choice.residents)
    sections = (tables.tensors, _encode_slices(pieces, choice, sealed=sealed), tables.ops, tables.stages)
    header = [
        _MAGIC,
        _VERSION,
        _HEADER_BYTES + 4 * sum(map(len, sections)),
        lowered.arena_bytes,
        len(tables.tensors) // 6,
        len(pieces),
        len(tables.ops),
        len(lowered.stages),
        len(tables.stages),
        resident_bytes,
        choice.slot_bytes,
        min(budget_bytes, _MAX_WORD),
        choice.lanes,
        *(0, 0, 0),
    ]
    return Program(
        data=_pack(itertools.chain(header, *sections)),
        slices=_make_slices(pieces, choice),
        inside_bytes=lowered.footprint().inside_bytes(len(pieces), resident_bytes, choice.slot_bytes, choice.lanes),
        lanes=choice.lanes,
    )


def _pack(words: Iterable[int]) -> bytes:
    values = np.fromiter(words, dtype=np.int64)
    if values.max() > _MAX_WORD:
        raise PlanError(
            "expected memory and constants of less than 4 GiB, but got more",
            "use int8 (--bits 8), or a smaller model",
        )
    return values.astype("<u4").tobytes()  # keeps the low 32 bits: two's complement


def _make_slices(pieces: Iterable[Piece], choice: Choice) -> tuple[SliceInfo, ...]:
    return tuple(
        SliceInfo(
            layer=piece.block.layer,
            first_unit=piece.first_unit,
            n_units=piece.n_units,
            resident=index in choice.residents,
            data=piece.plaintext(),
        )
        for index, piece in enumerate(pieces)
    )


def _encode_slices(pieces: Iterable[Piece], choice: Choice, *, sealed: bool) -> list[int]:
    words: list[int] = []
    place = store_offset = 0
    for index, piece in enumerate(pieces):
        resident = index in choice.residents
        where = place if resident else _STREAMED
        words += [piece.first_unit, piece.n_units, piece.n_bytes, where, store_offset]
        place += up(piece.n_bytes) if resident else 0
        store_offset += piece.n_bytes + (_SEAL_BYTES if sealed else -piece.n_bytes % 64)
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
