"""The static memory plan: nothing that is live at the same time overlaps, and nothing is wasted needlessly."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.compile import ir
from cloister.compile.memory import Buffer, live_buffers, place_buffers, plan_memory
from tests import strategies
from tests.strategies import REPEATABLE


@st.composite
def buffer_lists(draw):
    times = st.tuples(st.integers(-1, 12), st.integers(0, 6))
    pieces = draw(st.lists(st.tuples(st.integers(1, 300), times), max_size=14))
    return [
        Buffer(key=f"b{i}", n_bytes=n_bytes, first=first, last=first + length)
        for i, (n_bytes, (first, length)) in enumerate(pieces)
    ]


def live_bytes(buffers, time):
    return sum(-(-b.n_bytes // 16) * 16 for b in buffers if b.first <= time <= b.last)


@REPEATABLE
@given(buffer_lists())
def test_placement_never_overlaps_live_buffers_and_stays_in_the_arena(buffers):
    offsets, arena_bytes = place_buffers(buffers)
    for buffer in buffers:
        assert offsets[buffer.key] % 16 == 0
        assert offsets[buffer.key] + buffer.n_bytes <= arena_bytes
    for a, b in itertools.combinations(buffers, 2):
        if a.meets(b):
            apart = offsets[a.key] + a.n_bytes <= offsets[b.key] or offsets[b.key] + b.n_bytes <= offsets[a.key]
            assert apart, (a, b)
    peak = max((live_bytes(buffers, time) for time in range(-1, 20)), default=0)
    assert peak <= arena_bytes <= sum(-(-b.n_bytes // 16) * 16 for b in buffers)


def test_placement_of_a_chain_needs_no_more_than_its_largest_pair():
    sizes = [160, 320, 480, 64, 32, 800, 16]
    chain = [Buffer(key=str(i), n_bytes=size, first=i, last=i + 1) for i, size in enumerate(sizes)]
    assert place_buffers(chain)[1] == max(a + b for a, b in itertools.pairwise(sizes))


def regions_in_use(graph, stage, plan):
    """By simulation, independent of the lifetimes: at each operation, the tensors that are still to be read."""
    source = {op.output: op.inputs[0] for op in stage.ops if isinstance(op, ir.Alias)}
    written = set(stage.inputs)
    for time, op in enumerate(stage.ops):
        written.add(op.output)
        later = {name for o in stage.ops[time:] for name in (*o.inputs, o.output)} | set(stage.outputs)
        while extra := {source[name] for name in later if name in source} - later:
            later |= extra
        yield op, {name for name in written & later if name not in source}, plan.scratch.get(time)


def scratch_need(graph, op) -> int:
    """By the page of the format."""
    (height, width, _), taps = graph.tensors[op.output].hwc, op.weight.shape[1:3]
    rows, cols = (
        (o - 1) * s + (k - 1) * d < i and p == 0
        for o, s, k, d, i, p in zip(
            (height, width), op.stride, taps, op.dilation, graph.tensors[op.inputs[0]].hwc[:2], op.padding, strict=True
        )
    )
    if op.multiplier is None and rows and cols and (taps[1] == 1 or (op.dilation[1] == op.groups == 1)):
        return 0
    apart = [s if d == 1 and s < k else k for s, d, k in zip(op.stride, op.dilation, taps, strict=True)]
    lines = (min(height, math.ceil(128 / width)) - 1) * apart[0] + taps[0]
    columns = math.ceil(((width - 1) * apart[1] + taps[1]) / apart[1]) * apart[1]
    n_elements = lines * columns * op.weight.shape[3]
    return 4 * n_elements if op.multiplier is None else n_elements + 3


@REPEATABLE
@given(strategies.staged_graphs(max_ops=10))
def test_plan_of_a_stage_keeps_everything_that_is_still_needed(staged):
    graph, stages = staged
    for stage in stages:
        plan = plan_memory(graph.tensors, stage.ops, stage.inputs, stage.outputs)
        assert set(plan.tensors) == {n for op in stage.ops for n in (*op.inputs, op.output)} | set(stage.inputs)
        for op, names, scratch in regions_in_use(graph, stage, plan):
            regions = [(plan.tensors[name], graph.tensors[name].n_bytes) for name in names]
            if scratch is not None:
                regions.append((scratch, scratch_need(graph, op)))
            for (a, a_bytes), (b, b_bytes) in itertools.combinations(regions, 2):
                assert a + a_bytes <= b or b + b_bytes <= a
            assert all(start + n_bytes <= plan.arena_bytes for start, n_bytes in regions)


def tensors(**shapes):
    return {name: ir.Tensor(name=name, dtype="float32", shape=shape) for name, shape in shapes.items()}


def alias(source, target):
    return ir.Alias(inputs=(source,), output=target)


def softmax(source, target):
    return ir.Softmax(inputs=(source,), output=target)


def test_alias_chain_of_an_input_lies_on_the_input_and_keeps_it_alive():
    known = tensors(x=(4, 4, 4), y=(64,), z=(8, 8), p=(64,), q=(64,))
    ops = (alias("x", "y"), softmax("y", "p"), alias("y", "z"), softmax("p", "q"))
    plan = plan_memory(known, ops, ("x",), ("z", "q"))
    assert plan.tensors["x"] == plan.tensors["y"] == plan.tensors["z"]
    assert len({plan.tensors[name] for name in "zpq"}) == 3
    lifetime = {b.key: (b.first, b.last) for b in live_buffers(known, ops, ("x",), ("z", "q"))}
    assert lifetime == {"x": (-1, 4), "p": (1, 3), "q": (3, 4)}


def test_copies_that_share_an_output_keep_it_from_the_first_to_the_last_reader():
    known = tensors(x=(8,), y=(8,), cat=(16,), out=(16,))
    part = {"outer": 1, "inner": 8, "out_stride": 8, "multiplier": 1.0, "clamp": (-1.0, 1.0)}
    ops = (
        ir.Copy(inputs=("x",), output="cat", out_offset=0, **part),
        softmax("x", "y"),
        ir.Copy(inputs=("y",), output="cat", out_offset=8, **part),
        softmax("cat", "out"),
    )
    lifetime = {b.key: (b.first, b.last) for b in live_buffers(known, ops, ("x",), ("out",))}
    assert lifetime == {"x": (-1, 1), "y": (1, 2), "cat": (0, 3), "out": (3, 4)}


def test_inputs_live_together_from_the_start_even_if_nothing_reads_them():
    known = tensors(a=(8,), b=(8,), c=(8,))
    plan = plan_memory(known, (softmax("a", "c"),), ("a", "b"), ("c",))
    assert plan.tensors["a"] != plan.tensors["b"]
    assert plan.arena_bytes == 64  # c takes the place of b


def test_reading_what_nothing_wrote_is_refused():
    with pytest.raises(ValueError, match="'a' is read before"):
        plan_memory(tensors(a=(8,), c=(8,)), (softmax("a", "c"),), (), ("c",))
