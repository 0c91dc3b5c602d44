"""Hypothesis strategies: random models in the intermediate representation, and ways to cut them into stages.

Structure is drawn, so that failing examples shrink; weights and inputs come from a drawn seed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from cloister.compile import ir
from cloister.compile.program import Stage
from tests import oracle

#: The default run is the same everywhere.
REPEATABLE = settings(
    derandomize=True,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
MAX_ELEMENTS = 1500


class Builder:
    """A graph in the making; every method that adds an operation returns its output's name."""

    def __init__(self, draw, rng: np.random.Generator, shape: tuple[int, ...]):
        self.draw, self.rng = draw, rng
        self.tensors = {"input": ir.Tensor(name="input", dtype="float32", shape=shape)}
        self.ops: list[ir.Op] = []
        self.n_layers = 0
        self.max_kernel, self.max_units = 3, 4

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def choose(self, options):
        return self.draw(st.sampled_from(list(options)))

    def tensor(self, dtype: ir.DType, shape: tuple[int, ...], zero_point: int | None = None) -> ir.Tensor:
        name = f"t{len(self.tensors)}"
        if dtype == "float32":
            zero_point = 0
        elif zero_point is None:
            zero_point = self.choose([0, -128, 127, 3, -57])
        self.tensors[name] = ir.Tensor(name=name, dtype=dtype, shape=shape, zero_point=zero_point)
        return self.tensors[name]

    def layer(self) -> str:
        self.n_layers += 1
        return f"layer{self.n_layers}"

    def clamp(self, out: ir.Tensor) -> ir.Clamp:
        if out.dtype == "int8":
            return self.choose(
                [(-128, 127), (out.zero_point, 127), (max(-128, out.zero_point - 20), max(out.zero_point, 100)), (5, 5)]
            )
        return self.choose([(-math.inf, math.inf), (0.0, math.inf), (0.0, 6.0), (-0.75, 0.5)])

    def add(self, op: ir.Op) -> str:
        self.ops.append(op)
        return op.output

    def uniform(self, low: float, high: float, size=None):
        return self.rng.uniform(low, high, size).astype(np.float32) if size else float(self.rng.uniform(low, high))

    def rate(self, source: ir.DType, target: ir.DType) -> float:
        """A multiplier that keeps values in range."""
        rates = {"int8int8": (0.3, 2), "int8float32": (0.02, 0.1), "float32int8": (10, 60), "float32float32": (-2, 2)}
        return self.uniform(*rates[source + target])


def window(b: Builder, size: int, *, dilated: bool, max_padding: int):
    """(out, kernel, stride, padding, dilation) along one axis such that every window reads the input."""
    kernel, stride = b.integer(1, b.max_kernel), b.integer(1, 3)
    dilation = b.integer(1, 2) if dilated else 1
    padding = b.integer(0, max_padding)
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    out = (-(-span // stride) if b.draw(st.booleans()) else span // stride) + 1  # ceil mode, or floor
    for o in range(out):
        if not any(0 <= o * stride - padding + k * dilation < size for k in range(kernel)):
            return size, 1, 1, 0, 1
    return (out, kernel, stride, padding, dilation) if out >= 1 else (size, 1, 1, 0, 1)


def windows(b: Builder, source: ir.Tensor, *, dilated: bool, max_padding: int):
    """Output height and width, and pairs of kernel, stride, padding, dilation."""
    rows, cols = (window(b, size, dilated=dilated, max_padding=max_padding) for size in source.shape[1:])
    out, kernel, stride, padding, dilation = zip(rows, cols, strict=True)
    return out, {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}


def conv(b: Builder, source: ir.Tensor) -> str:
    if len(source.shape) == 3:
        channels = source.shape[0]
        groups = b.choose([g for g in range(1, channels + 1) if channels % g == 0])
        (height, width), geometry = windows(b, source, dilated=True, max_padding=2)
        units = groups * b.integer(1, b.max_units)
        shape: tuple[int, ...] = (units, height, width)
    else:
        channels, groups, units = source.shape[-1], 1, b.integer(1, 2 * b.max_units)
        geometry = {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
        shape = (*source.shape[:-1], units)
    dtype = b.choose(["int8", "int8", "float32"]) if source.dtype == "int8" else "float32"
    out = b.tensor(dtype, shape)
    kernel = geometry.pop("kernel")
    weights = conv_constants(b, source.dtype, dtype, (units, *kernel, channels // groups))
    op = ir.Conv(
        inputs=(source.name,),
        output=out.name,
        layer=b.layer(),
        groups=groups,
        clamp=b.clamp(out),
        **weights,
        **geometry,
    )
    b.add(op)
    same = source.shape == out.shape and source.dtype == out.dtype
    return use_again(b, op) if same and b.draw(st.booleans()) else out.name


def use_again(b: Builder, op: ir.Conv) -> str:
    """The same module on its own output."""
    old = b.tensors[op.output]
    again = b.tensor(old.dtype, old.shape)
    return b.add(dataclasses.replace(op, inputs=(old.name,), output=again.name, clamp=b.clamp(again)))


def conv_constants(b: Builder, source: ir.DType, target: ir.DType, shape: tuple[int, int, int, int]):
    n_units, n_taps = shape[0], math.prod(shape[1:])
    if source == "float32":
        weight = b.uniform(-1, 1, shape) / np.float32(math.sqrt(n_taps))
        return {"weight": weight, "bias": b.uniform(-1, 1, (n_units,)), "multiplier": None}
    scale = (1 if target == "int8" else 0.03) / (70 * math.sqrt(n_taps))
    return {
        "weight": b.rng.integers(-127, 128, shape).astype(np.int8),
        "bias": b.rng.integers(-5000, 5000, n_units).astype(np.int32),
        "multiplier": b.uniform(0.3, 2, (n_units,)) * np.float32(scale),
    }


def max_pool(b: Builder, source: ir.Tensor) -> str:
    (height, width), geometry = windows(b, source, dilated=True, max_padding=1)
    out = b.tensor(source.dtype, (source.shape[0], height, width), source.zero_point)
    return b.add(ir.MaxPool(inputs=(source.name,), output=out.name, clamp=b.clamp(out), **geometry))


def avg_pool(b: Builder, source: ir.Tensor) -> str:
    (height, width), geometry = windows(b, source, dilated=False, max_padding=1)
    del geometry["dilation"]
    out = b.tensor(source.dtype, (source.shape[0], height, width))
    return b.add(
        ir.AvgPool(
            inputs=(source.name,),
            output=out.name,
            clamp=b.clamp(out),
            count_padding=b.draw(st.booleans()),
            divisor=b.choose([0, 0, 1, 3, 7]),
            multiplier=b.rate(source.dtype, out.dtype),
            **geometry,
        )
    )


def adaptive_avg_pool(b: Builder, source: ir.Tensor) -> str:
    out = b.tensor(source.dtype, (source.shape[0], b.integer(1, 5), b.integer(1, 5)))
    rate = b.rate(source.dtype, out.dtype)
    op = ir.AdaptiveAvgPool(inputs=(source.name,), output=out.name, multiplier=rate, clamp=b.clamp(out))
    return b.add(op)


def add(b: Builder, source: ir.Tensor) -> str:
    others = [t.name for t in b.tensors.values() if (t.dtype, t.shape) == (source.dtype, source.shape)]
    out = b.tensor(source.dtype, source.shape)
    multipliers = (b.rate(source.dtype, out.dtype), b.rate(source.dtype, out.dtype))
    inputs = (source.name, b.choose(others))
    return b.add(ir.Add(inputs=inputs, output=out.name, multipliers=multipliers, clamp=b.clamp(out)))


def affine(b: Builder, source: ir.Tensor) -> str:
    out = b.tensor(source.dtype, source.shape)
    channels = source.hwc[2]
    shift = 30 if source.dtype == "int8" else 1
    return b.add(
        ir.Affine(
            inputs=(source.name,),
            output=out.name,
            layer=b.layer(),
            slope=b.uniform(-1.5, 1.5, (channels,)),
            shift=b.uniform(-shift, shift, (channels,)),
            clamp=b.clamp(out),
        )
    )


def copy(b: Builder, source: ir.Tensor) -> str:
    out = b.tensor(b.choose(["int8", "float32"]), source.shape)
    return copy_into(b, source, out, 1, source.n_elements, source.n_elements, 0)


def copy_into(b: Builder, source, out, outer: int, inner: int, out_stride: int, out_offset: int) -> str:
    return b.add(
        ir.Copy(
            inputs=(source.name,),
            output=out.name,
            outer=outer,
            inner=inner,
            out_stride=out_stride,
            out_offset=out_offset,
            multiplier=b.rate(source.dtype, out.dtype),
            clamp=b.clamp(out),
        )
    )


def concat(b: Builder, source: ir.Tensor) -> str:
    """Along c, of this tensor and others that agree with it in all other axes."""
    height, width, _ = source.hwc
    fits = [t for t in b.tensors.values() if len(t.shape) == len(source.shape) and t.hwc[:2] == (height, width)]
    parts = [source, *(b.choose(fits) for _ in range(b.integer(1, 2)))]
    channels = sum(part.hwc[2] for part in parts)
    image = len(source.shape) == 3
    shape = (channels, height, width) if image else (*source.shape[:-1], channels)
    out = b.tensor(b.choose(["int8", "float32"]), shape)
    offset = 0
    for part in parts:
        copy_into(b, part, out, height * width, part.hwc[2], channels, offset)
        offset += part.hwc[2]
    return out.name


def permute(b: Builder, source: ir.Tensor) -> str:
    height, width, channels = source.hwc
    out = b.tensor(source.dtype, (source.n_elements,), source.zero_point)
    return b.add(ir.Permute(inputs=(source.name,), output=out.name, rows=height * width, cols=channels))


def alias(b: Builder, source: ir.Tensor) -> str:
    n = source.n_elements
    rows = b.choose([r for r in range(1, n + 1) if n % r == 0])
    shape = b.choose([(n,), (rows, n // rows), (n // rows, 1, rows)])
    out = b.tensor(source.dtype, shape, source.zero_point)
    return b.add(ir.Alias(inputs=(source.name,), output=out.name))


def softmax(b: Builder, source: ir.Tensor) -> str:
    out = b.tensor("float32", source.shape)
    return b.add(ir.Softmax(inputs=(source.name,), output=out.name))


def to_float(b: Builder, source: ir.Tensor) -> str:
    out = b.tensor("float32", source.shape)
    return copy_into(b, source, out, 1, source.n_elements, source.n_elements, 0)


IMAGE_OPS = (conv, conv, max_pool, avg_pool, adaptive_avg_pool, add, affine, copy, concat, permute, alias, softmax)
OTHER_OPS = (conv, add, affine, copy, concat, alias, softmax)


@st.composite
def graphs(draw, max_ops: int = 7) -> ir.Graph:
    """Small models over all operations."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)))
    b = Builder(draw, rng, shape)
    quantized = draw(st.booleans())
    latest = copy_quantized(b) if quantized else "input"
    for _ in range(draw(st.integers(1, max_ops))):
        source = b.tensors[latest if draw(st.integers(0, 3)) else b.choose(b.tensors)]
        kinds = [k for k in (IMAGE_OPS if len(source.shape) == 3 else OTHER_OPS) if fits(k, source)]
        latest = b.choose(kinds)(b, source)
        if b.tensors[latest].n_elements > MAX_ELEMENTS:
            break
    if b.tensors[latest].dtype == "int8":
        latest = to_float(b, b.tensors[latest])
    return ir.Graph(tensors=b.tensors, ops=tuple(b.ops), input="input", output=latest)


@st.composite
def wide_convolutions(draw) -> ir.Graph:
    """One convolution or linear layer with enough channels to reach every vector path and its remainder."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    channels = draw(st.integers(1, 80))
    sides = st.integers(1, 11)
    shape = (channels, draw(sides), draw(sides)) if draw(st.booleans()) else (channels * 5,)
    b = Builder(draw, rng, shape)
    b.max_kernel, b.max_units = 5, 40 if len(shape) == 1 else max(1, 80 // channels)
    source = copy_quantized(b) if draw(st.booleans()) else "input"
    latest = conv(b, b.tensors[source])
    if b.tensors[latest].dtype == "int8":
        latest = to_float(b, b.tensors[latest])
    return ir.Graph(tensors=b.tensors, ops=tuple(b.ops), input="input", output=latest)


def copy_quantized(b: Builder) -> str:
    source = b.tensors["input"]
    out = b.tensor("int8", source.shape)
    return copy_into(b, source, out, 1, source.n_elements, source.n_elements, 0)


def fits(kind, source: ir.Tensor) -> bool:
    return kind is not softmax or source.dtype == "float32"


def inputs(graph: ir.Graph, n_images: int, seed: int = 0) -> np.ndarray:
    """(N, ...) float32 images for a model."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_images, *graph.tensors[graph.input].shape)).astype(np.float32)


def whole(graph: ir.Graph, outputs: tuple[str, ...] = ()) -> Stage:
    """The whole model as one stage."""
    return Stage(ops=graph.ops, inputs=(graph.input,), outputs=outputs or (graph.output,))


def cut(graph: ir.Graph, places) -> tuple[Stage, ...]:
    """Consecutive stages, cut before the operations with these indices (where no concatenation is torn apart)."""
    outputs = [op.output for op in graph.ops]
    places = [p for p in sorted(set(places)) if 0 < p < len(outputs) and not {*outputs[:p]} & {*outputs[p:]}]
    bounds = [0, *places, len(outputs)]
    stages = []
    for start, end in itertools.pairwise(bounds):
        ops = graph.ops[start:end]
        later = {name for op in graph.ops[end:] for name in op.inputs} | {graph.output}
        made = dict.fromkeys(op.output for op in ops)
        needed = dict.fromkeys(name for op in ops for name in op.inputs if name not in made)
        given = tuple(name for name in made if name in later) or tuple(made)[-1:]
        stages.append(Stage(ops=ops, inputs=tuple(needed), outputs=given))
    return tuple(stages)


@st.composite
def staged_graphs(draw, max_ops: int = 7) -> tuple[ir.Graph, tuple[Stage, ...]]:
    """A model and its stages."""
    graph = draw(graphs(max_ops=max_ops))
    return graph, cut(graph, draw(st.sets(st.integers(1, 6), max_size=3)))


def payload(graph: ir.Graph, names, values) -> np.ndarray:
    """A stage's payload (N, bytes) from tensors in PyTorch's order."""
    parts = [oracle.to_memory(graph.tensors[name], values[name]) for name in names]
    return np.concatenate([p.reshape(len(p), -1).view(np.uint8) for p in parts], axis=1)


def unpack(graph: ir.Graph, names, data: np.ndarray) -> dict[str, np.ndarray]:
    """The inverse of `payload`."""
    values, start = {}, 0
    for name in names:
        tensor = graph.tensors[name]
        part = np.ascontiguousarray(data[:, start : start + tensor.n_bytes]).view(tensor.dtype)
        values[name] = oracle.from_memory(tensor, part.reshape(len(data), *tensor.hwc))
        start += tensor.n_bytes
    return values
