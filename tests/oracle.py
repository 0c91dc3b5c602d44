"""A plain numpy oracle over the intermediate representation.

It follows the formulas of `docs/spec/program.md` and shares no code with the encoder or with the interpreter. It
knows nothing of stages, slices or memory. A tensor is an array (N, h, w, c) in memory order; results are handed out in
PyTorch's order.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from cloister.compile import ir

Array = npt.NDArray[np.generic]
F32 = np.float32

#: With at most so many terms of |x - z| <= 255 times |w| <= 127, every float32 partial sum is an exact integer.
EXACT_TERMS = 2**24 // (255 * 127)
#: Float convolutions of more terms than this use a matrix product, whose order of summation is not the format's.
SEQUENTIAL_TERMS = 4096


def run(graph: ir.Graph, x: npt.NDArray[np.float32], *, sequential_terms: int = SEQUENTIAL_TERMS) -> dict[str, Array]:
    """Runs a whole model on a batch.

    Args:
        graph: without `Foreign` operations.
        x: (N, C, H, W) float32, or (N, ...) of the model's input shape.
        sequential_terms: float convolutions of at most so many terms are summed from left to right, bit-exact; others
            by a matrix product.

    Returns:
        Every tensor, (N, ...) in PyTorch's order, by name.
    """
    memory = {graph.input: to_memory(graph.tensors[graph.input], x)}
    with np.errstate(all="ignore"):
        for op in graph.ops:
            if isinstance(op, ir.Conv):
                memory[op.output] = conv(op, graph, memory, sequential_terms)
            else:
                memory[op.output] = apply(op, graph, memory)
    return {name: from_memory(graph.tensors[name], value) for name, value in memory.items()}


def to_memory(tensor: ir.Tensor, x: Array) -> Array:
    """(N, ...) in PyTorch's order as (N, h, w, c)."""
    if len(tensor.shape) == 3:
        return np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    return np.ascontiguousarray(x).reshape(len(x), *tensor.hwc)


def from_memory(tensor: ir.Tensor, value: Array) -> Array:
    """(N, h, w, c) in PyTorch's order."""
    if len(tensor.shape) == 3:
        return np.ascontiguousarray(value.transpose(0, 3, 1, 2))
    return value.reshape(len(value), *tensor.shape)


def finish(values: Array, op: ir.Op, out: ir.Tensor) -> Array:
    """The spec's q (int8) or r (float32) of float32 values: rounded, moved and clamped; a NaN becomes lo."""
    lo, hi = op.clamp
    assert values.dtype == F32
    if out.dtype == "float32":
        return np.where(np.isnan(values), F32(lo), np.clip(values, F32(lo), F32(hi)))
    rounded = np.clip(np.rint(values), -1024, 1024) + out.zero_point  # exact, and far outside of every clamp
    return np.where(np.isnan(rounded), lo, np.clip(rounded, lo, hi)).astype(np.int8)


def centred(value: Array, tensor: ir.Tensor) -> Array:
    """x - z as int64, or the float32 values themselves."""
    return value.astype(np.int64) - tensor.zero_point if tensor.dtype == "int8" else value


def taps(x: Array, out: ir.Tensor, kernel, stride, padding, dilation=(1, 1), fill=0):
    """For each (ky, kx) in order: (N, oh, ow, c) of what that tap reads, `fill` outside; and (oh, ow): is inside."""
    _, height, width, _ = x.shape
    out_h, out_w, _ = out.hwc
    for ky in range(kernel[0]):
        for kx in range(kernel[1]):
            rows = np.arange(out_h) * stride[0] - padding[0] + ky * dilation[0]
            cols = np.arange(out_w) * stride[1] - padding[1] + kx * dilation[1]
            inside = ((rows >= 0) & (rows < height))[:, None] & ((cols >= 0) & (cols < width))
            read = x[:, rows.clip(0, height - 1)][:, :, cols.clip(0, width - 1)]
            if not inside.all():
                read = np.where(inside[:, :, None], read, np.asarray(fill, dtype=x.dtype))
            yield read, inside


def conv(op: ir.Conv, graph: ir.Graph, memory: dict[str, Array], sequential_terms: int) -> Array:
    source, out = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    x = memory[op.inputs[0]]
    if source.dtype == "int8":
        x = (x.astype(np.int16) - source.zero_point).astype(F32)
    n_units, *kernel, n_channels = op.weight.shape
    n_out = n_units // op.groups
    acc = np.empty((len(x), *out.hwc), dtype=np.int32 if source.dtype == "int8" else F32)
    acc[:] = op.bias
    n_terms = op.weight[0].size
    depthwise = op.groups > 1 and op.groups == n_units == n_channels * op.groups
    for (ky, kx), (read, inside) in zip(
        np.ndindex(*kernel), taps(x, out, kernel, op.stride, op.padding, op.dilation), strict=True
    ):
        for group in range(op.groups):
            units = slice(group * n_out, (group + 1) * n_out)
            part = read[..., group * n_channels : (group + 1) * n_channels]
            weight = op.weight[units, ky, kx].T.astype(F32)  # (C_in / groups, O / groups)
            if source.dtype == "int8":
                for k in range(0, n_channels, EXACT_TERMS):
                    acc[..., units] += product(part[..., k : k + EXACT_TERMS], weight[k : k + EXACT_TERMS]).astype(
                        acc.dtype
                    )
            elif n_terms <= sequential_terms:
                for k in range(n_channels):
                    before = acc[..., units]
                    after = fma(part[..., k, None], weight[k], before)
                    acc[..., units] = np.where(inside[..., None], after, before) if depthwise else after
            else:
                acc[..., units] += product(part, weight)
    if source.dtype == "float32":
        return finish(acc, op, out)
    assert n_terms <= 65536  # then no sum leaves int32
    assert np.abs(op.bias.astype(np.int64)).max() < 2**30
    return finish(acc.astype(F32) * op.multiplier, op, out)


def fma(x: Array, w: Array, total: Array) -> Array:
    """x * w + total of float32, rounded once.

    In float64 the product is exact, but the sum is rounded before it becomes float32. Rounding twice gives what
    rounding once gives if the first goes to the odd one of the two neighbours where it is not exact.
    """
    product = x.astype(np.float64) * w
    near = product + total
    back = near - product
    error = (product - (near - back)) + (total - back)
    even = np.ascontiguousarray(near).view(np.int64) % 2 == 0
    odd = np.nextafter(near, np.where(error > 0, np.inf, -np.inf))
    return np.where(even & np.isfinite(error) & (error != 0), odd, near).astype(F32)


def product(part: Array, weight: Array) -> Array:
    """(..., k) times (k, units) as one large matrix product."""
    return (part.reshape(-1, part.shape[-1]) @ weight).reshape(*part.shape[:-1], -1)


@functools.singledispatch
def apply(op: ir.Op, graph: ir.Graph, memory: dict[str, Array]) -> Array:
    """One operation's output in memory order."""
    raise TypeError(type(op))


@apply.register
def _(op: ir.MaxPool, graph: ir.Graph, memory: dict[str, Array]) -> Array:
    x, out = memory[op.inputs[0]], graph.tensors[op.output]
    best = np.full((len(x), *out.hwc), -128 if x.dtype == np.int8 else -np.inf, dtype=x.dtype)
    for read, inside in taps(x, out, op.kernel, op.stride, op.padding, op.dilation):
        best = np.where(inside[:, :, None] & (read > best), read, best)
    lo, hi = (best.dtype.type(bound) for bound in op.clamp)
    return np.clip(best, lo, hi)


@apply.register
def _(op: ir.AvgPool, graph: ir.Graph, memory: dict[str, Array]) -> Array:
    source, out = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    x = centred(memory[op.inputs[0]], source)
    total = np.zeros((len(x), *out.hwc), dtype=x.dtype)
    count = np.zeros(out.hwc[:2], dtype=np.int64)
    for read, inside in taps(x, out, op.kernel, op.stride, op.padding):
        total = total + read
        count += inside
    if op.divisor:
        count[:] = op.divisor
    elif op.count_padding:
        sides = []
        for axis in (0, 1):
            start = np.arange(out.hwc[axis]) * op.stride[axis] - op.padding[axis]
            end = np.minimum(start + op.kernel[axis], source.hwc[axis] + op.padding[axis])
            sides.append(end - start)
        count = sides[0][:, None] * sides[1]
    assert count.min() >= 1
    mean = total.astype(F32) / count.astype(F32)[:, :, None]
    return finish(mean * F32(op.multiplier), op, out)


@apply.register
def _(op: ir.AdaptiveAvgPool, graph: ir.Graph, memory: dict[str, Array]) -> Array:
    source, out = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    x = centred(memory[op.inputs[0]], source)
    mean = np.empty((len(x), *out.hwc), dtype=F32)
    (height, width, _), (out_h, out_w, _) = source.hwc, out.hwc
    for oy, ox in np.ndindex(out_h, out_w):
        window = x[:, oy * height // out_h : -(-(oy + 1) * height // out_h)]
        window = window[:, :, ox * width // out_w : -(-(ox + 1) * width // out_w)]
        total = np.zeros_like(window[:, 0, 0])
        for ky, kx in np.ndindex(*window.shape[1:3]):
            total = total + window[:, ky, kx]
        mean[:, oy, ox] = total.astype(F32) / F32(window.shape[1] * window.shape[2])
    return finish(mean * F32(op.multiplier), op, out)


@apply.register
def _(op: ir.Add, graph: ir.Graph, memory: dict[str, Array]) -> Array:
    terms = [
        centred(memory[name], graph.tensors[name]).astype(F32) * F32(multiplier)
        for name, multiplier in zip(op.inputs, op.multipliers, strict=True)
    ]
    return finish(terms[0] + terms[1], op, graph.tensors[op.output])


@apply.register
def _(op: ir.Affine, graph: ir.Graph, memory: dict[str, Array]) -> Array:
    x = centred(memory[op.inputs[0]], graph.tensors[op.inputs[0]]).astype(F32)
    return finish(x * op.slope + op.shift, op, graph.tensors[op.output])


@apply.register
def _(op: ir.Copy, graph: ir.Graph, memory: dict[str, Array]) -> Array:
    source, out = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    x = centred(memory[op.inputs[0]], source).astype(F32)
    parts = finish(x * F32(op.multiplier), op, out).reshape(len(x), op.outer, op.inner)
    written = memory.get(op.output)
    result = np.zeros((len(x), out.n_elements), dtype=out.dtype)
    if written is not None:
        result[:] = written.reshape(result.shape)
    places = np.arange(op.outer)[:, None] * op.out_stride + op.out_offset + np.arange(op.inner)
    result[:, places] = parts
    return result.reshape(len(x), *out.hwc)


@apply.register
def _(op: ir.Permute, graph: ir.Graph, memory: dict[str, Array]) -> Array:
    x = memory[op.inputs[0]]
    swapped = x.reshape(len(x), op.rows, op.cols).transpose(0, 2, 1)
    return np.ascontiguousarray(swapped).reshape(len(x), *graph.tensors[op.output].hwc)


@apply.register
def _(op: ir.Alias, graph: ir.Graph, memory: dict[str, Array]) -> Array:
    x = memory[op.inputs[0]]
    return x.reshape(len(x), *graph.tensors[op.output].hwc)


@apply.register
def _(op: ir.Softmax, graph: ir.Graph, memory: dict[str, Array]) -> Array:
    x = memory[op.inputs[0]]
    e = exp(x - x.max(axis=-1, keepdims=True))
    total = np.zeros(x.shape[:-1], dtype=F32)
    for c in range(x.shape[-1]):
        total = total + e[..., c]
    return e / total[..., None]


def exp(v: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The spec's exponential of v <= 0, one float32 operation at a time."""
    v = np.where(np.isnan(v), F32(-88), v)
    n = np.rint(np.maximum(v, F32(-88)) * F32(1.44269504))
    r = (np.maximum(v, F32(-88)) - n * F32(0.693359375)) - n * F32(-2.12194440e-4)
    p = np.full_like(r, F32(1.9875691500e-4))
    for coefficient in (
        *(1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1),
        5.0000001201e-1,
    ):
        p = p * r + F32(coefficient)
    value = (p * (r * r) + r) + F32(1)
    return np.where(v < F32(-87), F32(0), np.ldexp(value, n.astype(np.int32)))
