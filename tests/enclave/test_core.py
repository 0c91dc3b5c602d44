"""The interpreter in this process gives what the oracle says, and refuses what is damaged."""

from __future__ import annotations

import math
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.compile import ir
from cloister.compile.program import build_inside, build_outside, constants, smallest_budget
from cloister.enclave import core
from cloister.enclave.core import OutsideProgram, StageSizes, read_stages
from cloister.errors import BundleError, EnclaveUnavailable, InputError
from tests import oracle, strategies
from tests.strategies import REPEATABLE

MORE = settings(REPEATABLE, max_examples=600)


def run_stages(graph, stages, x):
    """Everything that crosses a stage's border, by name."""
    program = build_outside(graph, stages)
    opened = OutsideProgram(program.data, constants(program))
    values = {graph.input: x}
    for index, stage in enumerate(stages):
        result = opened.run(index, strategies.payload(graph, stage.inputs, values))
        values |= strategies.unpack(graph, stage.outputs, result)
    return values


def assert_same(values, expected):
    for name, value in values.items():
        assert value.dtype == expected[name].dtype
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@MORE
@given(strategies.staged_graphs(), st.integers(1, 3))
def test_random_models_give_the_oracles_bits(staged, n_images):
    graph, stages = staged
    x = strategies.inputs(graph, n_images)
    assert_same(run_stages(graph, stages, x), oracle.run(graph, x))


@REPEATABLE
@given(strategies.graphs(max_ops=9))
def test_every_tensor_of_a_random_model_is_the_oracles(graph):
    x = strategies.inputs(graph, 2)
    everything = (graph.input, *dict.fromkeys(op.output for op in graph.ops))
    assert_same(run_stages(graph, (strategies.whole(graph, everything),), x), oracle.run(graph, x))


@REPEATABLE
@given(strategies.wide_convolutions())
def test_wide_convolutions_give_the_oracles_bits(graph):
    x = strategies.inputs(graph, 2)
    assert_same(run_stages(graph, (strategies.whole(graph),), x), oracle.run(graph, x))


def as_outside(program):
    """An inside program's (program, constants) with the same slices, but all of them clear and streamed."""
    words = np.frombuffer(program.data, "<u4").copy()
    words[9:13] = 0, 0, 0, 1
    table = words[16 + 6 * words[4] :][: 5 * words[5]].reshape(-1, 5)
    table[:, 3] = 0xFFFFFFFF
    stored = -(-table[:, 2] // 64) * 64
    table[:, 4] = np.cumsum(stored) - stored
    return words.tobytes(), constants(program)


@REPEATABLE
@given(st.one_of(strategies.staged_graphs(), strategies.wide_convolutions().map(lambda g: (g, (strategies.whole(g),)))))
def test_layers_in_slices_give_the_bits_of_whole_layers(staged):
    graph, stages = staged
    program = build_inside(graph, stages, budget_bytes=smallest_budget(graph, stages), slicing="auto")
    opened, values = OutsideProgram(*as_outside(program)), {graph.input: strategies.inputs(graph, 2)}
    whole = run_stages(graph, stages, values[graph.input])
    for index, stage in enumerate(stages):
        result = opened.run(index, strategies.payload(graph, stage.inputs, values))
        values |= strategies.unpack(graph, stage.outputs, result)
    assert_same(values, whole)


def chain(shape, *ops_and_tensors):
    tensors = {"input": ir.Tensor(name="input", dtype="float32", shape=shape)}
    ops = []
    for op, tensor in ops_and_tensors:
        tensors[tensor.name] = tensor
        ops.append(op)
    return ir.Graph(tensors=tensors, ops=tuple(ops), input="input", output=ops[-1].output)


def copy_of_all(n, clamp, multiplier=1.0, source="input", target="out"):
    part = {"outer": 1, "inner": n, "out_stride": n, "out_offset": 0}
    return ir.Copy(inputs=(source,), output=target, multiplier=multiplier, clamp=clamp, **part)


SPECIAL = np.array([[math.nan, math.inf, -math.inf, 1e38, -1e38, 0.5, 1.5, 2.5, -0.5, -1.5, 1e-45, 0.0]], np.float32)


@pytest.mark.parametrize(("clamp", "zero_point"), [((-128, 127), 0), ((-100, 90), -7), ((3, 127), 127)])
def test_conversion_to_int8_rounds_halves_to_even_and_clamps_nan_to_the_least(clamp, zero_point):
    out = ir.Tensor(name="out", dtype="int8", shape=(12,), zero_point=zero_point)
    graph = chain((12,), (copy_of_all(12, clamp), out))
    value = run_stages(graph, (strategies.whole(graph),), SPECIAL)["out"]
    np.testing.assert_array_equal(value, oracle.run(graph, SPECIAL)["out"])
    rounded = [clamp[0], 127, -128, 127, -128, 0, 2, 2, 0, -2, 0, 0]
    moved = [rounded[0], *(r + zero_point if abs(r) < 127 else r for r in rounded[1:])]
    np.testing.assert_array_equal(value[0], np.clip(moved, *clamp))


@pytest.mark.parametrize("clamp", [(-math.inf, math.inf), (0.0, 6.0), (-2.0, -1.0)])
def test_float_conversion_clamps_nan_to_the_least(clamp):
    out = ir.Tensor(name="out", dtype="float32", shape=(12,))
    graph = chain((12,), (copy_of_all(12, clamp, 0.5), out))
    value = run_stages(graph, (strategies.whole(graph),), SPECIAL)["out"]
    np.testing.assert_array_equal(value, oracle.run(graph, SPECIAL)["out"])
    assert value[0, 0] == clamp[0]


def dense(source, target, weight, bias, multiplier, clamp):
    one, none = (1, 1), (0, 0)
    return ir.Conv(
        inputs=(source,),
        output=target,
        layer="fc",
        weight=weight[:, None, None, :],
        bias=bias,
        multiplier=multiplier,
        stride=one,
        padding=none,
        dilation=one,
        groups=1,
        clamp=clamp,
    )


def test_largest_int8_sums_do_not_overflow():
    n = 65536 // 16
    signs = np.array([127, -127, 1, 0], np.int8)
    op = dense(
        *("q", "out"),
        np.repeat(signs[:, None], n, axis=1),
        np.array([2**30 - 1, -(2**30) + 1, 7, -9], np.int32),
        np.full(4, 0.25, np.float32),
        (-math.inf, math.inf),
    )
    graph = chain(
        (n,),
        (
            copy_of_all(n, (-128, 127), target="q"),
            ir.Tensor(name="q", dtype="int8", shape=(n,), zero_point=-128),
        ),
        (op, ir.Tensor(name="out", dtype="float32", shape=(4,))),
    )
    x = np.stack([np.full(n, 1000), np.full(n, -1000), np.arange(n) % 255 - 128]).astype(np.float32)
    value = run_stages(graph, (strategies.whole(graph),), x)["out"]
    assert value[0, 0] == np.float32(255 * 127 * n + 2**30 - 1) * np.float32(0.25)
    np.testing.assert_array_equal(value, oracle.run(graph, x)["out"])


def test_long_float_sums_run_from_left_to_right_and_are_near_the_matrix_product():
    rng = np.random.default_rng(3)
    weight, bias = rng.normal(size=(11, 700)).astype(np.float32), rng.normal(size=11).astype(np.float32)
    op = dense("input", "out", weight, bias, None, (-math.inf, math.inf))
    graph = chain((5, 700), (op, ir.Tensor(name="out", dtype="float32", shape=(5, 11))))
    x = strategies.inputs(graph, 4)
    value = run_stages(graph, (strategies.whole(graph),), x)["out"]
    np.testing.assert_array_equal(value, oracle.run(graph, x)["out"])
    exact = x.astype(np.float64) @ weight.T.astype(np.float64) + bias
    np.testing.assert_allclose(value, exact, rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(oracle.run(graph, x, sequential_terms=0)["out"], exact, rtol=1e-6, atol=1e-4)


def test_softmax_is_within_a_few_units_in_the_last_place_of_the_true_one():
    tensor = ir.Tensor(name="out", dtype="float32", shape=(100,))
    graph = chain((100,), (ir.Softmax(inputs=("input",), output="out"), tensor))
    x = np.random.default_rng(5).normal(scale=8, size=(50, 100)).astype(np.float32)
    value = run_stages(graph, (strategies.whole(graph),), x)["out"]
    e = np.exp((x - x.max(axis=1, keepdims=True)).astype(np.float64))
    np.testing.assert_allclose(value, e / e.sum(axis=1, keepdims=True), rtol=1e-6, atol=1e-37)


@pytest.fixture(scope="module")
def small():
    """A program with constants, two stages and several operations: (program, constants, sizes)."""
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(3, 8)).astype(np.float32), np.zeros(3, np.float32)
    graph = chain(
        (8,),
        (
            dense("input", "hidden", weight, bias, None, (0.0, math.inf)),
            ir.Tensor(name="hidden", dtype="float32", shape=(3,)),
        ),
        (
            ir.Softmax(inputs=("hidden",), output="out"),
            ir.Tensor(name="out", dtype="float32", shape=(3,)),
        ),
    )
    program = build_outside(graph, strategies.cut(graph, [1]))
    return program.data, constants(program)


def test_stage_sizes_are_those_of_the_tensors(small):
    assert read_stages(small[0]) == (StageSizes(in_bytes=32, out_bytes=12), StageSizes(in_bytes=12, out_bytes=12))


def test_constants_may_lie_anywhere(small):
    program, data = small
    x = np.arange(64, dtype=np.uint8).reshape(2, 32) % 60
    expected = OutsideProgram(program, data).run(0, x)
    for shift in (1, 4, 16):
        block = bytes(shift) + data
        moved = OutsideProgram(program, memoryview(block)[shift:])
        np.testing.assert_array_equal(moved.run(0, x), expected)


def test_run_of_an_empty_batch_gives_an_empty_result(small):
    assert OutsideProgram(*small).run(1, np.zeros((0, 12), np.uint8)).shape == (0, 12)


def test_run_takes_payloads_that_are_not_contiguous(small):
    opened = OutsideProgram(*small)
    wide = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32).view(np.uint8)
    np.testing.assert_array_equal(opened.run(0, wide[:, 16:48]), opened.run(0, wide[:, 16:48].copy()))


@pytest.mark.parametrize(
    ("stage", "payload", "message"),
    [
        (2, np.zeros((1, 32), np.uint8), "expected a stage below 2, but got 2"),
        (-1, np.zeros((1, 32), np.uint8), "expected a stage below 2"),
        (0, np.zeros((1, 31), np.uint8), r"expected a payload of \(N, 32\) uint8, but got \(1, 31\)"),
        (0, np.zeros((1, 8), np.float32), "but got .* float32"),
        (0, np.zeros(32, np.uint8), "but got"),
    ],
)
def test_run_of_a_wrong_stage_or_payload_is_refused(small, stage, payload, message):
    with pytest.raises(InputError, match=message):
        OutsideProgram(*small).run(stage, payload)


def test_open_of_a_cut_program_is_refused(small):
    program, data = small
    for n_bytes in range(0, len(program), 3):
        with pytest.raises(BundleError):
            OutsideProgram(program[:n_bytes], data)
    with pytest.raises(BundleError):
        OutsideProgram(program + bytes(4), data)


def test_open_with_constants_of_another_length_is_refused(small):
    program, data = small
    for other in (b"", data[:-16], data + bytes(16)):
        with pytest.raises(BundleError, match="refused"):
            OutsideProgram(program, other)


SIZE_WORDS = (3, 9, 10)  # arena, resident region, slot: a huge one is legal, and slow to get


def test_open_of_a_changed_program_is_refused_or_harmless(small):
    program, data = small
    refused = 0
    for word in range(len(program) // 4):
        for value in (0, 0x000FFFF0, 0xFFFFFFFF if word not in SIZE_WORDS else 1):
            changed = program[: 4 * word] + struct.pack("<I", value) + program[4 * word + 4 :]
            try:
                opened = OutsideProgram(changed, data)
                for index, sizes in enumerate(opened.stages):
                    opened.run(index, np.zeros((1, sizes.in_bytes), np.uint8))
            except (BundleError, InputError):
                refused += 1
    assert refused > len(program) // 4


@pytest.mark.parametrize("n_bytes", [0, 3, 60, 64, 100])
def test_read_stages_of_a_cut_program_is_refused(small, n_bytes):
    with pytest.raises(BundleError):
        read_stages(small[0][:n_bytes])


@pytest.mark.parametrize("word", [-1, -2, -4])
def test_read_stages_that_point_nowhere_are_refused(small, word):
    words = np.frombuffer(small[0], "<u4").copy()
    words[word] = 1000
    with pytest.raises(BundleError, match="refer to something"):
        read_stages(words.tobytes())


def test_read_stages_with_an_unknown_dtype_is_refused(small):
    words = np.frombuffer(small[0], "<u4").copy()
    words[17] = 9
    with pytest.raises(BundleError, match="refer to something"):
        read_stages(words.tobytes())


def test_missing_library_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setattr(core, "_LIBRARY", "libcloister_missing.so")
    with pytest.raises(EnclaveUnavailable, match=r"libcloister_missing\.so") as caught:
        core.load_library.__wrapped__()
    assert "reinstall" in caught.value.hint


def test_import_needs_no_torch():
    code = "import sys, cloister.enclave.core; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
