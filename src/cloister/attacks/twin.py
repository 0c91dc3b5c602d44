"""A program in the clear as PyTorch sees it: with gradients, one tensor for each parameter.

It is made from the bytes that lie in a bundle (`docs/spec/program.md`), so it holds what they hold and nothing else.
int8 values are counted in steps from their zero point; rounding lets gradients through unchanged (straight through).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cloister.attacks.unpacking import Window, unpack
from cloister.bundle.manifest import Step, TensorInfo
from cloister.compile.packing import up4

__all__ = ["ProgramTwin", "round_through"]

_HEADER_WORDS, _TENSOR_WORDS, _SLICE_WORDS = 16, 6, 5
_INT8 = 1
_Parameters = Mapping[str, Tensor]


def round_through(x: Tensor) -> Tensor:
    """To the nearest integers, halves to even; the gradient is that of the identity."""
    return x + (x.round() - x).detach()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Record:
    """A tensor of the program: see the format."""

    offset: int
    is_int8: bool
    h: int
    w: int
    c: int
    zero_point: int

    @property
    def hwc(self) -> tuple[int, int, int]:
        return self.h, self.w, self.c


class _Memory:
    """Values by where they lie: a reshape is a second record of the same memory."""

    def __init__(self) -> None:
        self._at: dict[int, tuple[Tensor, int]] = {}

    def read(self, record: _Record) -> Tensor:
        """(N, c, h, w)."""
        value, _ = self._at[record.offset]
        if value.shape[1:] == (record.c, record.h, record.w):
            return value
        return _from_memory(_to_memory(value), record.hwc)

    def write(self, record: _Record, value: Tensor, number: int) -> None:
        """Keep (N, c, h, w) as the tensor of this number."""
        self._at[record.offset] = (value, number)

    def begun(self, record: _Record, number: int) -> Tensor | None:
        """What an earlier operation wrote into the same tensor, (N, elements) in memory order."""
        value, owner = self._at.get(record.offset, (None, -1))
        return _to_memory(value) if value is not None and owner == number else None


def _to_memory(value: Tensor) -> Tensor:
    """(N, c, h, w) as (N, elements): channels are fastest."""
    return value.permute(0, 2, 3, 1).flatten(1)


def _from_memory(flat: Tensor, hwc: tuple[int, int, int]) -> Tensor:
    return flat.reshape(len(flat), *hwc).permute(0, 3, 1, 2)


class ProgramTwin:
    """The stages of a program as functions of values and parameters.

    Args:
        program: bytes of a valid program in the clear.
        constants: its slices, each at its store offset.
        steps: the steps that are its stages, in their order.
        tensors: by name, what enters or leaves a stage.

    Attributes:
        parameters: `LAYER.weight` and `LAYER.bias`, float32: weights (O, I / groups, H, W) of a convolution, (O, I) of
            a linear layer, (C,) of a batch norm by itself. Those of int8 are dequantized: in steps of the output for a
            step of the input, so a layer that is used at several scales has several (`LAYER@2`, ...).
    """

    def __init__(
        self, program: bytes, constants: bytes, steps: Sequence[Step], tensors: Mapping[str, TensorInfo]
    ) -> None:
        words = np.frombuffer(program, "<u4").astype(np.int64)
        n_tensors, n_slices, n_op_words, n_stages = (int(word) for word in words[4:8])
        cuts = np.cumsum([_HEADER_WORDS, _TENSOR_WORDS * n_tensors, _SLICE_WORDS * n_slices, n_op_words])
        _, records, slices, self._ops, stages = np.split(words, cuts)
        self._records = [_record(one) for one in records.reshape(-1, _TENSOR_WORDS)]
        self._slices = slices.reshape(-1, _SLICE_WORDS)
        self._constants = constants
        self._steps, self._infos = tuple(steps), dict(tensors)
        self._stages = list(_stages(stages, n_stages))
        self.parameters: dict[str, Tensor] = {}
        self._layers: dict[int, str] = {}  # by first slice
        for step, stage in zip(self._steps, self._stages, strict=True):
            self._name_layers(step, stage.first_word, stage.n_words)
        del self._constants  # all of it is among the parameters now

    def run(
        self, index: int, inputs: Sequence[Tensor], parameters: _Parameters, activations: dict[str, Tensor]
    ) -> list[Tensor]:
        """Run a stage.

        Args:
            index: of the stage.
            inputs: each (N, *shape) in PyTorch's order; of int8 in real numbers.
            parameters: in place of `self.parameters`.
            activations: what each layer with parameters gives is put here, under its name.

        Returns:
            The outputs, likewise.
        """
        stage, step = self._stages[index], self._steps[index]
        memory = _Memory()
        for number, name, value in zip(stage.inputs, step.inputs, inputs, strict=True):
            memory.write(self._records[number], self._enter(value, self._infos[name]), number)
        for op in self._operations(stage.first_word, stage.n_words):
            _RULES[int(op[0])](self, [int(word) for word in op[2:]], memory, parameters, activations)
        outputs = zip(stage.outputs, step.outputs, strict=True)
        return [self._leave(memory.read(self._records[number]), self._infos[name]) for number, name in outputs]

    # --- values between stages ---

    def _enter(self, value: Tensor, info: TensorInfo) -> Tensor:
        """(N, c, h, w); int8 in steps from its zero point."""
        if info.dtype == "int8":
            low, high = -128 - info.zero_point, 127 - info.zero_point
            value = round_through((value / info.scale).clamp(low, high))
        if len(info.shape) == 3:
            return value
        return value.reshape(len(value), 1, -1, info.shape[-1]).permute(0, 3, 1, 2)

    def _leave(self, value: Tensor, info: TensorInfo) -> Tensor:
        value = value if len(info.shape) == 3 else _to_memory(value).reshape(len(value), *info.shape)
        return value * info.scale if info.dtype == "int8" else value

    # --- parameters ---

    def _operations(self, first: int, n_words: int) -> Iterator[np.ndarray[tuple[int], np.dtype[np.int64]]]:
        at = first
        while at < first + n_words:
            length = int(self._ops[at + 1])
            yield self._ops[at : at + length]
            at += length

    def _name_layers(self, step: Step, first: int, n_words: int) -> None:
        """Take a stage's parameters; its layers are named in the order of their first use."""
        weighted = [op.tolist() for op in self._operations(first, n_words) if int(op[0]) in (_CONV, _AFFINE)]
        words = {op[4]: op for op in weighted}
        # A layer that is used at several scales has its weights several times, each time with other multipliers.
        alike = {
            start: self._weight_bytes(op) if len(words) > len(step.layers) else start for start, op in words.items()
        }
        names = dict(zip(dict.fromkeys(alike.values()), step.layers, strict=False))
        for start, op in words.items():
            if start not in self._layers:
                self._layers[start] = self._fresh(names.get(alike[start], f"slice{start}"))
                self._take(self._layers[start], op)

    def _weight_bytes(self, op: list[int]) -> bytes:
        """The integers of an int8 layer; all constants of another one."""
        source, result = self._records[op[2]], self._records[op[3]]
        data = b"".join(part for part, *_ in self._open(op[4], op[5]))
        if op[0] == _AFFINE or not source.is_int8:
            return data
        row = op[7] * source.c // op[14]
        taps = op[6] * op[7] if op[14] == source.c == result.c > 1 else op[6] * up4(row)
        return data[: len(data) // (taps + 12) * taps]

    def _fresh(self, name: str) -> str:
        """A layer has several sets of constants where its scales differ from use to use."""
        count = sum(other == name or other.startswith(f"{name}@") for other in self._layers.values())
        return f"{name}@{count + 1}" if count else name

    def _take(self, name: str, op: list[int]) -> None:
        source, result = self._records[op[2]], self._records[op[3]]
        if op[0] == _AFFINE:
            parts = [
                np.frombuffer(data, "<f4").reshape(2, -1).astype(np.float32) for data, *_ in self._open(op[4], op[5])
            ]
            weight, bias = np.concatenate(parts, axis=1)
        else:
            kh, kw, groups = op[6], op[7], op[14]
            depthwise = groups > 1 and groups == source.c == result.c
            window = Window(kh, kw, source.c // groups, result.c // groups, depthwise)
            pairs = [unpack(data, window, first, n, int8=source.is_int8) for data, first, n in self._open(op[4], op[5])]
            weight = np.concatenate([pair[0] for pair in pairs]).transpose(0, 3, 1, 2)
            bias = np.concatenate([pair[1] for pair in pairs])
            if _is_linear(source, op):
                weight = weight[:, :, 0, 0]
        self.parameters[f"{name}.weight"] = torch.from_numpy(np.array(weight, order="C"))
        self.parameters[f"{name}.bias"] = torch.from_numpy(np.array(bias))

    def _open(self, first: int, n_slices: int) -> Iterator[tuple[bytes, int, int]]:
        """(bytes, first unit, number of units) of some slices."""
        for first_unit, n_units, n_bytes, _, offset in self._slices[first : first + n_slices].tolist():
            yield self._constants[offset : offset + n_bytes], first_unit, n_units

    # --- operations ---

    def _finish(self, values: Tensor, number: int, low: int, high: int, *, rounded: bool = True) -> Tensor:
        """The format's q (int8) or r (float32) of real results."""
        record = self._records[number]
        if record.is_int8:
            bounds = (_signed(low) - record.zero_point, _signed(high) - record.zero_point)
            values = values.clamp(*bounds)  # before rounding it is the same, and has a gradient
            return round_through(values) if rounded else values
        low_float, high_float = _float(low), _float(high)
        if low_float == 0 and math.isinf(high_float):
            return functional.relu(values)
        if math.isinf(low_float) and math.isinf(high_float):
            return values
        return values.clamp(low_float, high_float)

    def _ends(self, op: list[int]) -> tuple[_Record, _Record]:
        return self._records[op[0]], self._records[op[1]]

    def _conv(self, op: list[int], memory: _Memory, given: _Parameters, kept: dict[str, Tensor]) -> None:
        source, result = self._ends(op)
        kh, kw, *stride_and_padding, groups, _, low, high = op[4:]
        stride, padding, dilation = (tuple(stride_and_padding[i : i + 2]) for i in (0, 2, 4))
        name = self._layers[op[2]]
        weight, bias = given[f"{name}.weight"], given[f"{name}.bias"]
        x = memory.read(source)
        if weight.dim() == 2:
            values = functional.linear(x.flatten(1), weight, bias)[:, :, None, None]
        else:
            x = _padded(x, result, (kh, kw), stride, padding, dilation, 0.0)
            values = functional.conv2d(x, weight, bias, stride, 0, dilation, groups)
        kept[name] = values = self._finish(values, op[1], low, high)
        memory.write(result, values, op[1])

    def _affine(self, op: list[int], memory: _Memory, given: _Parameters, kept: dict[str, Tensor]) -> None:
        source, result = self._ends(op)
        name = self._layers[op[2]]
        slope, shift = (given[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias"))
        kept[name] = values = self._finish(memory.read(source) * slope + shift, op[1], op[4], op[5])
        memory.write(result, values, op[1])

    def _max_pool(self, op: list[int], memory: _Memory, given: _Parameters, kept: dict[str, Tensor]) -> None:
        source, result = self._ends(op)
        kernel, stride, padding, dilation = (tuple(op[i : i + 2]) for i in (2, 4, 6, 8))
        x = _padded(memory.read(source), result, kernel, stride, padding, dilation, -math.inf)
        values = functional.max_pool2d(x, kernel, stride, 0, dilation)
        memory.write(result, self._finish(values, op[1], *op[10:], rounded=False), op[1])

    def _avg_pool(self, op: list[int], memory: _Memory, given: _Parameters, kept: dict[str, Tensor]) -> None:
        source, result = self._ends(op)
        kernel, stride, padding = (tuple(op[i : i + 2]) for i in (2, 4, 6))
        x = _padded(memory.read(source), result, kernel, stride, padding, (1, 1), 0.0)
        sums = functional.avg_pool2d(x, kernel, stride, divisor_override=1)
        means = sums / _counts(source, result, kernel, stride, padding, op[8] == 1, op[9])
        memory.write(result, self._finish(means * _float(op[10]), op[1], *op[11:]), op[1])

    def _adaptive(self, op: list[int], memory: _Memory, given: _Parameters, kept: dict[str, Tensor]) -> None:
        source, result = self._ends(op)
        means = functional.adaptive_avg_pool2d(memory.read(source), (result.h, result.w))
        memory.write(result, self._finish(means * _float(op[2]), op[1], *op[3:]), op[1])

    def _add(self, op: list[int], memory: _Memory, given: _Parameters, kept: dict[str, Tensor]) -> None:
        a, b, result = (self._records[number] for number in op[:3])
        values = memory.read(a) * _float(op[3]) + memory.read(b) * _float(op[4])
        memory.write(result, self._finish(values, op[2], *op[5:]), op[2])

    def _copy(self, op: list[int], memory: _Memory, given: _Parameters, kept: dict[str, Tensor]) -> None:
        source, result = self._ends(op)
        outer, inner, stride, offset = op[2:6]
        flat = self._finish(_to_memory(memory.read(source)) * _float(op[6]), op[1], *op[7:])
        n_elements = math.prod(result.hwc)
        if flat.shape[1] < n_elements:
            before = memory.begun(result, op[1])
            places = torch.arange(outer)[:, None] * stride + offset + torch.arange(inner)
            whole = flat.new_zeros(len(flat), n_elements) if before is None else before
            flat = whole.index_copy(1, places.flatten(), flat)
        memory.write(result, _from_memory(flat, result.hwc), op[1])

    def _permute(self, op: list[int], memory: _Memory, given: _Parameters, kept: dict[str, Tensor]) -> None:
        source, result = self._ends(op)
        flat = _to_memory(memory.read(source)).reshape(-1, op[2], op[3]).transpose(1, 2).flatten(1)
        memory.write(result, _from_memory(flat, result.hwc), op[1])

    def _softmax(self, op: list[int], memory: _Memory, given: _Parameters, kept: dict[str, Tensor]) -> None:
        source, result = self._ends(op)
        memory.write(result, memory.read(source).softmax(1), op[1])


_CONV, _AFFINE = 1, 6
_Rule = Callable[[ProgramTwin, list[int], _Memory, _Parameters, dict[str, Tensor]], None]
_RULES: dict[int, _Rule] = {
    _CONV: ProgramTwin._conv,
    2: ProgramTwin._max_pool,
    3: ProgramTwin._avg_pool,
    4: ProgramTwin._adaptive,
    5: ProgramTwin._add,
    _AFFINE: ProgramTwin._affine,
    7: ProgramTwin._copy,
    8: ProgramTwin._permute,
    9: ProgramTwin._softmax,
}


# --- tables of a program ---


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stage:
    first_word: int
    n_words: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def _record(words: np.ndarray[tuple[int], np.dtype[np.int64]]) -> _Record:
    offset, dtype, h, w, c, zero_point = words.tolist()
    return _Record(offset=offset, is_int8=dtype == _INT8, h=h, w=w, c=c, zero_point=_signed(zero_point))


def _stages(words: np.ndarray[tuple[int], np.dtype[np.int64]], n_stages: int) -> Iterator[_Stage]:
    at = 0
    for _ in range(n_stages):
        first, n_words, n_inputs, n_outputs = words[at : at + 4].tolist()
        ids = words[at + 4 : at + 4 + n_inputs + n_outputs].tolist()
        yield _Stage(first_word=first, n_words=n_words, inputs=tuple(ids[:n_inputs]), outputs=tuple(ids[n_inputs:]))
        at += 4 + n_inputs + n_outputs


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def _float(word: int) -> float:
    return float(np.uint32(word).view(np.float32))


# --- windows ---

_Pair = tuple[int, ...]


def _is_linear(source: _Record, op: list[int]) -> bool:
    """Whether a convolution is a linear layer of one row; `op` from its opcode on."""
    return source.h == source.w == op[6] == op[7] == op[14] == 1


def _padded(
    x: Tensor, result: _Record, kernel: _Pair, stride: _Pair, padding: _Pair, dilation: _Pair, value: float
) -> Tensor:
    """With all that windows reach: what is at the bottom and right follows from the output."""
    after = [
        (size - 1) * s + (k - 1) * d + 1 - p - side
        for size, side, k, s, p, d in zip(
            (result.h, result.w), x.shape[2:], kernel, stride, padding, dilation, strict=True
        )
    ]
    edges = (padding[1], after[1], padding[0], after[0])
    return functional.pad(x, edges, value=value) if any(edges) else x


def _counts(
    source: _Record, result: _Record, kernel: _Pair, stride: _Pair, padding: _Pair, with_padding: bool, divisor: int
) -> Tensor:
    """What sums are divided by, (h, w)."""
    if divisor:
        return torch.full((result.h, result.w), float(divisor))
    axes = [
        _axis_counts(*axis, with_padding)
        for axis in zip((source.h, source.w), (result.h, result.w), kernel, stride, padding, strict=True)
    ]
    return functools.reduce(torch.outer, axes)


def _axis_counts(side: int, size: int, kernel: int, stride: int, padding: int, with_padding: bool) -> Tensor:
    starts = torch.arange(size) * stride - padding
    if with_padding:
        return ((starts + kernel).clamp(max=side + padding) - starts).float()
    return ((starts + kernel).clamp(max=side) - starts.clamp(min=0)).float()
