"""Programs: every byte as `docs/spec/program.md` says, slices that add up, budgets that are kept to the byte."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.compile import ir
from cloister.compile.program import Stage, build_inside, build_outside, constants, smallest_budget
from cloister.errors import PlanError, UnsupportedModel
from tests import strategies
from tests.strategies import REPEATABLE

STREAMED = 0xFFFFFFFF
OP_LENGTHS = {1: 18, 2: 14, 3: 15, 4: 7, 5: 9, 6: 8, 7: 11, 8: 6, 9: 4}


@dataclasses.dataclass
class Decoded:
    header: list[int]
    tensors: list[tuple[int, ...]]
    slices: list[tuple[int, ...]]
    ops: list[tuple[int, ...]]
    stages: list[tuple[int, int, list[int], list[int]]]


def decode(data: bytes) -> Decoded:
    """Reads a program by the page of the format, and checks that its sections account for every byte."""
    words = list(struct.unpack(f"<{len(data) // 4}I", data))
    header, at = words[:16], 16
    n_tensors, n_slices, n_op_words, n_stages, n_stage_words = header[4:9]
    tensors = [tuple(words[at + 6 * i : at + 6 * i + 6]) for i in range(n_tensors)]
    at += 6 * n_tensors
    slices = [tuple(words[at + 5 * i : at + 5 * i + 5]) for i in range(n_slices)]
    at += 5 * n_slices
    op_words, stage_words = words[at : at + n_op_words], words[at + n_op_words :]
    assert len(stage_words) == n_stage_words
    ops = []
    while op_words:
        length = op_words[1]
        assert OP_LENGTHS[op_words[0]] == length
        ops.append(tuple(op_words[:length]))
        op_words = op_words[length:]
    stages = []
    while stage_words:
        first, n_words, n_in, n_out = stage_words[:4]
        ids, stage_words = stage_words[4 : 4 + n_in + n_out], stage_words[4 + n_in + n_out :]
        stages.append((first, n_words, ids[:n_in], ids[n_in:]))
    assert len(stages) == n_stages
    return Decoded(header, tensors, slices, ops, stages)


def up(n: int, step: int = 64) -> int:
    return -(-n // step) * step


def inside_bytes(header: list[int]) -> int:
    return 4096 + up(header[2]) + header[12] * up(header[3]) + up(header[9]) + up(header[10])


# --- Every word of a small program -------------------------------------------------------------------------------


def linear(source, target, weight, bias, multiplier=None, *, layer="fc", clamp=(-math.inf, math.inf)):
    """A linear layer; weight (O, I)."""
    one = (1, 1)
    return ir.Conv(
        inputs=(source,),
        output=target,
        layer=layer,
        weight=weight[:, None, None, :],
        bias=bias,
        multiplier=multiplier,
        stride=one,
        padding=(0, 0),
        dilation=one,
        groups=1,
        clamp=clamp,
    )


def tensor(name, dtype, *shape, zero_point=0):
    return ir.Tensor(name=name, dtype=dtype, shape=shape, zero_point=zero_point)


def graph_of(tensors, ops):
    known = {t.name: t for t in tensors}
    return ir.Graph(tensors=known, ops=tuple(ops), input=tensors[0].name, output=ops[-1].output)


def f32(value: float) -> int:
    return struct.unpack("<I", struct.pack("<f", value))[0]


def small_model():
    """int8 image (2, 3, 5) -> conv 3 units -> alias -> linear 2 units."""
    weight = np.arange(3 * 2 * 3 * 2, dtype=np.int8).reshape(3, 2, 3, 2)
    conv = ir.Conv(
        inputs=("x",),
        output="h",
        layer="conv",
        weight=weight,
        bias=np.array([7, -8, 9], np.int32),
        multiplier=np.array([0.5, 0.25, 2], np.float32),
        stride=(1, 2),
        padding=(0, 1),
        dilation=(2, 1),
        groups=1,
        clamp=(-5, 127),
    )
    last = linear("flat", "y", np.ones((2, 9), np.int8), np.array([1, 2], np.int32), np.ones(2, np.float32))
    tensors = [
        tensor("x", "int8", 2, 3, 5, zero_point=-3),
        tensor("h", "int8", 3, 1, 3, zero_point=4),
        tensor("flat", "int8", 9, zero_point=4),
        tensor("y", "float32", 2),
    ]
    return graph_of(tensors, [conv, ir.Alias(inputs=("h",), output="flat"), last])


def test_every_word_of_a_small_program_is_as_specified():
    graph = small_model()
    got = decode(build_inside(graph, (strategies.whole(graph),), budget_bytes=None, slicing="auto").data)
    # x 30 bytes, h 9, y 8; scratch of 2 lines of 8 taps of 2 bytes and 3 more, and of 12 bytes, one live at a time.
    x, h, flat, y = (record[0] for record in got.tensors)
    assert got.tensors == [
        (x, 1, 3, 5, 2, 2**32 - 3),
        (h, 1, 1, 3, 3, 4),
        (flat, 1, 1, 1, 9, 4),
        (y, 2, 1, 1, 2, 0),
    ]
    assert h == flat
    assert got.slices == [(0, 3, 4 * (12 + 2 * 8), 0, 0), (0, 2, 4 * (12 + 12), 128, 112 + 16)]
    conv, last = got.ops
    assert conv == (1, 18, 0, 1, 0, 1, 2, 3, 1, 2, 0, 1, 2, 1, 1, conv[15], 2**32 - 5, 127)
    assert last == (1, 18, 2, 3, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, last[15], f32(-math.inf), f32(math.inf))
    assert got.stages == [(0, 36, [0], [3])]
    total = 64 + 24 * 4 + 20 * 2 + 4 * 36 + 4 * 6
    magic = struct.unpack("<I", b"CLPR")[0]
    assert got.header == [magic, 1, total, 32 + 16 + 48, 4, 2, 36, 1, 6, 256, 0, 0, 1, 0, 0, 0]


def test_other_operations_have_their_operands_in_order():
    image, pair = tensor("x", "float32", 2, 4, 4), {"clamp": (0.0, 6.0), "multiplier": 0.5}
    ops = [
        ir.MaxPool(
            inputs=("x",),
            output="a",
            kernel=(2, 3),
            stride=(4, 5),
            padding=(0, 1),
            dilation=(1, 2),
            clamp=(0.0, 6.0),
        ),
        ir.AvgPool(
            inputs=("x",),
            output="b",
            kernel=(2, 3),
            stride=(4, 5),
            padding=(1, 0),
            count_padding=True,
            divisor=7,
            **pair,
        ),
        ir.AdaptiveAvgPool(inputs=("x",), output="c", **pair),
        ir.Add(inputs=("c", "x"), output="d", multipliers=(1.5, -2.0), clamp=(-1.0, 1.0)),
        ir.Affine(
            inputs=("d",),
            output="e",
            layer="bn",
            slope=np.ones(2, np.float32),
            shift=np.zeros(2, np.float32),
            clamp=(0.0, 1.0),
        ),
        ir.Copy(inputs=("e",), output="f", outer=2, inner=16, out_stride=20, out_offset=3, **pair),
        ir.Permute(inputs=("f",), output="g", rows=5, cols=8),
        ir.Softmax(inputs=("g",), output="h"),
    ]
    shapes = {"a": (2, 1, 1), "b": (2, 1, 1), "c": (2, 4, 4), "d": (2, 4, 4), "e": (2, 4, 4)}
    shapes |= {"f": (40,), "g": (40,), "h": (40,)}
    graph = graph_of([image, *(tensor(name, "float32", *shape) for name, shape in shapes.items())], ops)
    got = decode(build_outside(graph, (strategies.whole(graph),)).data)
    lo, hi, half, one, minus = (f32(v) for v in (0.0, 6.0, 0.5, 1.0, -1.0))
    assert got.ops == [
        (2, 14, 0, 1, 2, 3, 4, 5, 0, 1, 1, 2, lo, hi),
        (3, 15, 0, 2, 2, 3, 4, 5, 1, 0, 1, 7, half, lo, hi),
        (4, 7, 0, 3, half, lo, hi),
        (5, 9, 3, 0, 4, f32(1.5), f32(-2.0), minus, one),
        (6, 8, 4, 5, 0, 1, lo, one),
        (7, 11, 5, 6, 2, 16, 20, 3, half, lo, hi),
        (8, 6, 6, 7, 5, 8),
        (9, 4, 7, 8),
    ]


def test_slices_hold_the_constants_in_the_specified_order():
    graph = small_model()
    conv, dense = build_inside(graph, (strategies.whole(graph),), budget_bytes=None, slicing="auto").slices
    assert (conv.layer, conv.first_unit, conv.n_units, conv.resident) == ("conv", 0, 3, True)
    # Units are padded to 4, each row of a window (6 taps) to 8; four taps of each unit follow each other.
    rows = np.zeros((4, 2, 8), np.int8)
    rows[:3, :, :6] = np.arange(36).reshape(3, 2, 6)
    packed = [int(rows[u, k // 8, k % 8 + i]) for k in range(0, 16, 4) for u in range(4) for i in range(4)]
    numbers = (0.5, 0.25, 2, 0, 7, -8, 9, 0, 66, 210, 354, 0)
    assert conv.data == struct.pack("<64b4f8i", *packed, *numbers)
    ones = [[int(u < 2 and k + i < 9) for i in range(4)] for k in range(0, 12, 4) for u in range(4)]
    assert dense.data == struct.pack("<48b4f8i", *itertools.chain(*ones), 1, 1, 0, 0, 1, 2, 0, 0, 9, 9, 0, 0)
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    op = linear("x", "y", weight, np.array([10, 20], np.float32))
    wide = graph_of([tensor("x", "float32", 3), tensor("y", "float32", 2)], [op])
    (only,) = build_outside(wide, (strategies.whole(wide),)).slices
    assert only.data == struct.pack("<8f", 0, 3, 1, 4, 2, 5, 10, 20)  # k-major


# --- What holds for every program --------------------------------------------------------------------------------


def check_rules(graph, stages, program, *, sealed: bool) -> Decoded:
    """The rules of the format that can be checked without running anything."""
    got = decode(program.data)
    assert got.header[0] == int.from_bytes(b"CLPR", "little")
    assert got.header[1] == 1
    assert got.header[2] == len(program.data)
    assert got.header[12] == program.lanes
    assert got.header[13:] == [0] * 3
    assert program.inside_bytes == inside_bytes(got.header)
    assert [len(op) for op in got.ops] == [OP_LENGTHS[op[0]] for op in got.ops]
    check_tensors(got)
    check_slice_table(got, program, sealed=sealed)
    check_stages(graph, stages, got)
    return got


def check_tensors(got: Decoded) -> None:
    for offset, dtype, height, width, channels, _ in got.tensors:
        assert offset % 16 == 0
        assert offset + height * width * channels * {1: 1, 2: 4}[dtype] <= got.header[3]


def check_slice_table(got: Decoded, program, *, sealed: bool) -> None:
    store, taken = 0, []
    assert len(got.slices) == len(program.slices)
    for (first, n_units, n_bytes, place, offset), info in zip(got.slices, program.slices, strict=True):
        assert (first, n_units, n_bytes) == (info.first_unit, info.n_units, len(info.data))
        assert offset == store
        store += n_bytes + 16 if sealed else up(n_bytes)
        assert (place != STREAMED) == info.resident
        if info.resident:
            assert place % 64 == 0
            taken.append((place, place + n_bytes))
        elif sealed:
            assert n_bytes <= got.header[10]
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(sorted(taken)))
    assert max((end for _, end in taken), default=0) <= got.header[9]


def check_stages(graph, stages, got: Decoded) -> None:
    at = 0
    for stage, (first, n_words, inputs, outputs) in zip(stages, got.stages, strict=True):
        assert first == at
        at += n_words
        for names, ids in ((stage.inputs, inputs), (stage.outputs, outputs)):
            expected = [graph.tensors[name].hwc for name in names]
            assert [got.tensors[i][2:5] for i in ids] == expected
    assert at == got.header[6]


def operations_with_slices(got: Decoded, stages):
    """(operation, its slices) for each convolution and affine operation."""
    ops = [op for stage in stages for op in stage.ops if not isinstance(op, ir.Alias)]
    for op, words in zip(ops, got.ops, strict=True):
        if isinstance(op, ir.Conv | ir.Affine):
            first, n_slices = words[4:6]
            yield op, range(first, first + n_slices)


def merged(op, slices) -> list[np.ndarray]:
    """An operation's constants, put together from its slices."""
    parts = [constants_of(op, piece.data, piece.first_unit, piece.n_units) for piece in slices]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def constants_of(op, data: bytes, first: int, n: int) -> list[np.ndarray]:
    if isinstance(op, ir.Affine):
        return [np.frombuffer(data[: 4 * n], "<f4"), np.frombuffer(data[4 * n :], "<f4")]
    if op.multiplier is None:
        return unpack_float32(op, data, first, n)
    return unpack(op, data, first, n)


def unpack_float32(op, data: bytes, first: int, n: int) -> list[np.ndarray]:
    """Biases, weights (units, taps) of a slice, block by block."""
    size, taps = len(op.weight) // op.groups, op.weight[0].size
    depthwise = op.groups > 1 and op.groups == len(op.weight) == op.weight.shape[3] * op.groups
    values, weight, unit = np.frombuffer(data, "<f4"), [], 0
    while unit < n:
        of_group = size - (first + unit) % size
        width = n if depthwise else min(16, of_group, n - unit)
        # Blocks are counted from the first unit of a group in this slice.
        start = max(first, (first + unit) // size * size)
        assert depthwise or (first + unit - start) % 16 == 0
        weight.append(values[taps * unit : taps * (unit + width)].reshape(taps, width).T)
        unit += width
    assert len(values) == n * (taps + 1)
    return [values[n * taps :], np.concatenate(weight)]


def unpack(op, data: bytes, first: int, n: int) -> list[np.ndarray]:
    """Multipliers, biases, weights (units, taps) of a slice of packed weights, one by one as the format says."""
    size = len(op.weight) // op.groups
    _, height, width, channels = op.weight.shape
    depthwise = op.groups > 1 and op.groups == len(op.weight) == channels * op.groups
    row = width * channels
    n_taps = height * width if depthwise else height * up(row, 4)
    columns, blocks, at = {}, {}, 0  # of each unit: its column; start, width and place of its block
    groups = [[u for u in range(first, first + n) if u // size == g] for g in range(op.groups)]
    for units in (units for units in groups if units):
        for i, unit in enumerate(units):
            left = len(units) - i // 16 * 16
            blocks[unit] = (at + i // 16 * 16) * n_taps, min(16, up(left, 4)), i % 16
            columns[unit] = at + i
        at += len(units) if depthwise else up(len(units), 4)
    weight = np.zeros((n, height * row), np.int8)
    for unit, k in np.ndindex(*weight.shape):
        start, wide, place = blocks[first + unit]
        packed = k // row * up(row, 4) + k % row
        where = k * n + unit if depthwise else start + packed // 4 * 4 * wide + place * 4 + packed % 4
        weight[unit, k] = np.int8(data[where] - 256 * (data[where] > 127))
    rest = [
        np.frombuffer(data[at * n_taps :], dtype)[i * at : (i + 1) * at]
        for i, dtype in enumerate(("<f4", "<i4", "<i4"))
    ]
    multiplier, bias, total = (column[[columns[first + u] for u in range(n)]] for column in rest)
    np.testing.assert_array_equal(total, weight.sum(axis=1, dtype=np.int64))
    assert len(data) == at * (n_taps + 12)
    return [multiplier, bias, weight]


def originals(op) -> list[np.ndarray]:
    if isinstance(op, ir.Affine):
        return [op.slope, op.shift]
    weight = op.weight.reshape(len(op.weight), -1)
    return [op.bias, weight] if op.multiplier is None else [op.multiplier, op.bias, weight]


def cut_step(op) -> int:
    """Units that are cut together, so that packed weights hold no padding inside."""
    if isinstance(op, ir.Affine) or op.multiplier is None:
        return 1
    size = len(op.weight) // op.groups
    if op.groups > 1 and op.groups == len(op.weight) == op.weight.shape[3] * op.groups:
        return 1
    return 4 if op.groups == 1 or size % 4 == 0 else size


def check_slices(got: Decoded, stages, program) -> None:
    """Slices cover the units in order, as equal as can be, in whole blocks where it may be, and give the layer back."""
    used = set()
    for op, indices in operations_with_slices(got, stages):
        slices = [program.slices[i] for i in indices]
        used |= set(indices)
        counts = [piece.n_units for piece in slices]
        assert [piece.first_unit for piece in slices] == [sum(counts[:i]) for i in range(len(counts))]
        step = 16 if cut_step(op) == 4 and max(counts) % 16 == 0 else cut_step(op)
        assert max(counts) - min(counts) <= step * (2 if counts[-1] % step else 1)
        assert all(count % step == 0 for count in counts[:-1])
        assert {piece.layer for piece in slices} == {op.layer}
        for part, original in zip(merged(op, slices), originals(op), strict=True):
            np.testing.assert_array_equal(part, original)
    assert used == set(range(len(program.slices)))


@REPEATABLE
@given(strategies.staged_graphs())
def test_outside_program_follows_the_format_and_streams_whole_layers(staged):
    graph, stages = staged
    program = build_outside(graph, stages)
    got = check_rules(graph, stages, program, sealed=False)
    assert got.header[9:13] == [0, 0, 0, 1]
    assert all(piece[3] == STREAMED for piece in got.slices)
    assert all(len(indices) == 1 for _, indices in operations_with_slices(got, stages))
    check_slices(got, stages, program)
    store = constants(program)
    assert len(store) == sum(up(len(piece.data)) for piece in program.slices)
    for words, piece in zip(got.slices, program.slices, strict=True):
        assert store[words[4] : words[4] + len(piece.data)] == piece.data


@REPEATABLE
@given(strategies.staged_graphs())
def test_inside_program_without_a_budget_keeps_every_layer_whole_and_open(staged):
    graph, stages = staged
    program = build_inside(graph, stages, budget_bytes=None, slicing="auto")
    got = check_rules(graph, stages, program, sealed=True)
    assert got.header[10:13] == [0, 0, 1]
    assert all(piece.resident for piece in program.slices)
    assert all(len(indices) == 1 for _, indices in operations_with_slices(got, stages))
    check_slices(got, stages, program)
    same = build_inside(graph, stages, budget_bytes=program.inside_bytes, slicing="off")
    assert same.slices == program.slices


# --- Budgets -----------------------------------------------------------------------------------------------------


@st.composite
def heavy_graphs(draw) -> tuple[ir.Graph, tuple[Stage, ...]]:
    """Chains of linear layers and affine operations, of which the constants are most of the memory."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.lists(st.integers(1, 90), min_size=2, max_size=5))
    dtype = draw(st.sampled_from(["int8", "float32"]))
    tensors, ops = [tensor("t0", dtype, sizes[0])], []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        tensors.append(tensor(f"t{i + 1}", dtype, n_out))
        weight, bias = rng.integers(-127, 128, (n_out, n_in)), rng.integers(-99, 99, n_out)
        clamp, multiplier = (-math.inf, math.inf), None
        if dtype == "int8":
            clamp, multiplier = (-128, 127), rng.uniform(0, 0.01, n_out).astype(np.float32)
        kinds = (weight.astype(dtype), bias.astype("int32" if dtype == "int8" else dtype))
        ops.append(linear(f"t{i}", f"t{i + 1}", *kinds, multiplier, layer=f"fc{i}", clamp=clamp))
    graph = graph_of(tensors, ops)
    return graph, strategies.cut(graph, draw(st.sets(st.integers(1, 4), max_size=1)))


ANY = st.one_of(heavy_graphs(), strategies.staged_graphs())


@REPEATABLE
@given(ANY)
def test_smallest_budget_works_and_one_byte_less_does_not(staged):
    graph, stages = staged
    least = smallest_budget(graph, stages)
    program = build_inside(graph, stages, budget_bytes=least, slicing="auto")
    got = check_rules(graph, stages, program, sealed=True)
    assert program.inside_bytes == got.header[11] == least
    check_slices(got, stages, program)
    with pytest.raises(PlanError, match=str(least)) as caught:
        build_inside(graph, stages, budget_bytes=least - 1, slicing="auto")
    assert str(least) in caught.value.hint


@REPEATABLE
@given(ANY, st.floats(0, 1))
def test_any_budget_is_kept_and_used_as_the_rules_say(staged, share):
    graph, stages = staged
    least = smallest_budget(graph, stages)
    most = build_inside(graph, stages, budget_bytes=None, slicing="auto").inside_bytes
    budget = least + int(share * (most - least))
    program = build_inside(graph, stages, budget_bytes=budget, slicing="auto")
    got = check_rules(graph, stages, program, sealed=True)
    assert program.inside_bytes <= budget == got.header[11]
    check_slices(got, stages, program)
    streamed = [len(piece.data) for piece in program.slices if not piece.resident]
    resident = [len(piece.data) for piece in program.slices if piece.resident]
    assert got.header[10] == max(streamed, default=0)
    if streamed:
        assert max(resident, default=0) <= min(streamed)
        assert program.inside_bytes + up(min(streamed)) > budget


def test_smallest_budget_is_the_best_of_all_slicings():
    rng = np.random.default_rng(1)
    sizes = (40, 9, 30, 14)
    tensors = [tensor(f"t{i}", "float32", n) for i, n in enumerate(sizes)]
    ops = [
        linear(
            f"t{i}", f"t{i + 1}", rng.normal(size=(b, a)).astype(np.float32), np.zeros(b, np.float32), layer=f"fc{i}"
        )
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    ]
    graph = graph_of(tensors, ops)
    stages = (strategies.whole(graph),)
    whole = decode(build_outside(graph, stages).data).header
    needs = []
    for cuts in itertools.product(range(1, 10), range(1, 31), range(1, 15)):
        largest = max(-(-b // n) * 4 * (1 + a) for n, (a, b) in zip(cuts, itertools.pairwise(sizes), strict=True))
        header = whole.copy()
        header[2], header[10] = whole[2] + 20 * (sum(cuts) - 3), largest
        needs.append(inside_bytes(header))
    assert smallest_budget(graph, stages) == min(needs)


def three_layers():
    """fc0 is small, fc1 is large, fc2 is in between; all float32."""
    sizes = (16, 16, 256, 8)
    tensors = [tensor(f"t{i}", "float32", n) for i, n in enumerate(sizes)]
    ops = [
        linear(f"t{i}", f"t{i + 1}", np.ones((b, a), np.float32), np.zeros(b, np.float32), layer=f"fc{i}")
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    ]
    graph = graph_of(tensors, ops)
    return graph, (strategies.whole(graph),)


def test_program_that_no_call_carries_is_refused_with_both_numbers():
    graph, stages = three_layers()
    program = build_inside(graph, stages, budget_bytes=None, slicing="auto", call_bytes=24576)
    assert max(len(piece.data) for piece in program.slices) <= 24576 - 4 * 4096 - 16
    many = graph_of(
        [tensor(f"t{i}", "float32", 1) for i in range(301)],
        [ir.Softmax(inputs=(f"t{i}",), output=f"t{i + 1}") for i in range(300)],
    )
    sealed = len(build_inside(many, (strategies.whole(many),), budget_bytes=None, slicing="auto").data) + 16
    enough = up(sealed, 4096) + 2 * 4096
    build_inside(many, (strategies.whole(many),), budget_bytes=None, slicing="auto", call_bytes=enough)
    with pytest.raises(PlanError, match=f"at most {enough - 3 * 4096} bytes, .* but got {sealed}"):
        build_inside(many, (strategies.whole(many),), budget_bytes=None, slicing="auto", call_bytes=enough - 1)


def test_slicing_off_streams_whole_layers_and_keeps_the_small_ones_open():
    graph, stages = three_layers()
    everything = build_inside(graph, stages, budget_bytes=None, slicing="off")
    program = build_inside(graph, stages, budget_bytes=everything.inside_bytes - 1, slicing="off")
    assert [(p.layer, p.resident) for p in program.slices] == [("fc0", True), ("fc1", False), ("fc2", False)]
    check_rules(graph, stages, program, sealed=True)


def test_slicing_off_names_the_layers_that_do_not_fit_and_what_is_free():
    graph, stages = three_layers()
    least = smallest_budget(graph, stages)
    with pytest.raises(PlanError) as caught:
        build_inside(graph, stages, budget_bytes=least + 2000, slicing="off")
    message = str(caught.value)
    assert "`fc1` (17408 bytes)" in message
    assert "`fc0`" not in message
    free = int(re.search(r"leaves (\d+) bytes", message)[1])
    enough = int(re.search(r"budget of (\d+) bytes or more", caught.value.hint)[1])
    assert free < 17408
    assert str(least) in caught.value.hint
    build_inside(graph, stages, budget_bytes=enough, slicing="off")
    with pytest.raises(PlanError):
        build_inside(graph, stages, budget_bytes=enough - 1, slicing="off")


@pytest.mark.parametrize("slicing", ["auto", "off"])
@pytest.mark.parametrize("budget_bytes", [-5, 0, 1, 4096])
def test_budgets_below_any_program_are_refused(slicing, budget_bytes):
    graph, stages = three_layers()
    with pytest.raises(PlanError, match=rf" {budget_bytes}\b"):
        build_inside(graph, stages, budget_bytes=budget_bytes, slicing=slicing)


def test_huge_budgets_keep_everything_open():
    graph, stages = three_layers()
    program = build_inside(graph, stages, budget_bytes=2**40, slicing="auto")
    assert decode(program.data).header[11] == 2**32 - 1
    assert all(piece.resident for piece in program.slices)


def test_a_stage_without_constants_has_a_smallest_budget():
    softmax = ir.Softmax(inputs=("x",), output="y")
    graph = graph_of([tensor("x", "float32", 5), tensor("y", "float32", 5)], [softmax])
    stages = (strategies.whole(graph),)
    program = build_inside(graph, stages, budget_bytes=smallest_budget(graph, stages), slicing="off")
    assert program.slices == ()
    with pytest.raises(PlanError, match="activations do not fit"):
        build_inside(graph, stages, budget_bytes=program.inside_bytes - 1, slicing="off")


# --- Sharing, limits ---------------------------------------------------------------------------------------------


def twice(first_layer, second_layer, weight, other):
    tensors = [tensor(name, "float32", 4) for name in "xyz"]
    bias = np.zeros(4, np.float32)
    ops = [
        linear("x", "y", weight, bias, layer=first_layer),
        linear("y", "z", other, bias.copy(), layer=second_layer),
    ]
    graph = graph_of(tensors, ops)
    return build_inside(graph, (strategies.whole(graph),), budget_bytes=None, slicing="auto")


def test_a_module_used_twice_shares_its_slices():
    weight = np.eye(4, dtype=np.float32)
    program = twice("fc", "fc", weight, weight.copy())
    assert len(program.slices) == 1
    assert [op[4:6] for op in decode(program.data).ops] == [(0, 1), (0, 1)]


@pytest.mark.parametrize("second_layer", ["fc", "other"])
def test_what_differs_in_name_or_in_one_bit_is_not_shared(second_layer):
    weight = np.zeros((4, 4), np.float32)
    program = twice("fc", second_layer, weight, -weight if second_layer == "fc" else weight)
    assert len(program.slices) == 2


def test_affine_operations_share_only_with_their_like():
    names = [tensor(name, "float32", 4) for name in "abcde"]
    ones, wide = np.ones(4, np.float32), np.ones((4, 4), np.float32)

    def affine(source, target, slope):
        shift, clamp = np.zeros(4, np.float32), (-1.0, 1.0)
        return ir.Affine(inputs=(source,), output=target, layer="bn", slope=slope, shift=shift, clamp=clamp)

    ops = [
        affine("a", "b", ones),
        linear("b", "c", wide, ones, layer="bn"),
        affine("c", "d", ones.copy()),
        linear("d", "e", wide[:, :2].repeat(2, axis=1)[:, :3], ones, layer="bn"),
    ]
    program = build_outside(graph := graph_of(names, ops), (strategies.whole(graph),))
    assert [op[4:6] for op in decode(program.data).ops] == [(0, 1), (1, 1), (0, 1), (2, 1)]


def test_sums_that_could_overflow_are_refused_all_at_once():
    wide = np.ones((1, 65537), np.int8)
    one = np.ones(1, np.float32)
    tensors = [tensor("x", "int8", 65537), tensor("y", "int8", 1), tensor("z", "int8", 1)]
    ops = [
        linear("x", "y", wide, np.zeros(1, np.int32), one, layer="wide", clamp=(-128, 127)),
        linear("y", "z", wide[:, :1], np.array([-(2**30)], np.int32), one, layer="biased", clamp=(-128, 127)),
    ]
    graph = graph_of(tensors, ops)
    with pytest.raises(UnsupportedModel, match="`wide`, `biased`") as caught:
        build_outside(graph, (strategies.whole(graph),))
    assert [layer for layer, _, _ in caught.value.problems] == ["wide", "biased"]


def test_foreign_operations_cannot_be_lowered():
    known = [tensor("x", "float32", 4), tensor("y", "float32", 4)]
    foreign = ir.Foreign(
        inputs=("x",), output="y", node="sigmoid", operator="aten.sigmoid.default", module="", reason="no such opcode"
    )
    graph = graph_of(known, [foreign])
    with pytest.raises(TypeError, match="Foreign cannot be lowered"):
        build_outside(graph, (strategies.whole(graph),))


def test_programs_of_more_than_4_gib_are_refused():
    huge = tensor("x", "float32", 2**31), tensor("y", "float32", 2**31)
    graph = graph_of(list(huge), [ir.Softmax(inputs=("x",), output="y")])
    with pytest.raises(PlanError, match="less than 4 GiB"):
        build_outside(graph, (strategies.whole(graph),))
