"""The static memory plan of a stage: where in the arena each tensor and each scratch area lies.

Time is counted in operations. A buffer that is live from `first` to `last` (both included) overlaps no other
buffer that is live at any of these times. Times before 0 and behind the last operation stand for the moments when
the stage's inputs are copied in and its outputs are copied out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from cloister.compile.ir import Alias, Conv, Op, Tensor
from cloister.compile.packing import strip_bytes

__all__ = ["Buffer", "MemoryPlan", "live_buffers", "place_buffers", "plan_memory"]

_ALIGNMENT = 16
#: A buffer's name: a tensor's, or for scratch the index of its operation.
Key = str | int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Buffer:
    """A piece of the arena for some time.

    Attributes:
        key: the tensor's name; for scratch the index of its operation in the stage.
        n_bytes: size, at least 1.
        first: the first operation at which it is live, -1 for an input.
        last: the last one, the number of operations for an output.
    """

    key: Key
    n_bytes: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Whether both are live at some time."""
        return self.first <= other.last and other.first <= self.last


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Offsets in the arena, in bytes, multiples of 16.

    Attributes:
        tensors: offset of every tensor of the stage, by name; an alias has its root's.
        scratch: offset of the scratch of the operation with this index in the stage.
        arena_bytes: how long the arena must be.
    """

    tensors: dict[str, int]
    scratch: dict[int, int]
    arena_bytes: int


def plan_memory(
    tensors: Mapping[str, Tensor], ops: Sequence[Op], inputs: Sequence[str], outputs: Sequence[str]
) -> MemoryPlan:
    """Lays out one stage.

    Args:
        tensors: by name, at least those of the stage.
        ops: the stage's operations, in the order of running.
        inputs: names of the tensors that are copied in before the first operation.
        outputs: names of the tensors that are copied out behind the last one.

    Raises:
        ValueError: if a tensor is read that is neither an input nor written before.
    """
    roots = _find_roots(ops, inputs)
    buffers = live_buffers(tensors, ops, inputs, outputs)
    offsets, arena_bytes = place_buffers(buffers)
    return MemoryPlan(
        tensors={name: offsets[root] for name, root in roots.items()},
        scratch={key: offset for key, offset in offsets.items() if isinstance(key, int)},
        arena_bytes=arena_bytes,
    )


def live_buffers(
    tensors: Mapping[str, Tensor], ops: Sequence[Op], inputs: Sequence[str], outputs: Sequence[str]
) -> list[Buffer]:
    """The buffers that a stage needs: one for each tensor that is no alias, one for each scratch.

    Args and Raises: as of `plan_memory`.
    """
    roots = _find_roots(ops, inputs)
    first: dict[str, int] = dict.fromkeys((roots[name] for name in inputs), -1)
    last = dict(first)
    for time, op in enumerate(ops):
        if isinstance(op, Alias):
            continue
        first.setdefault(op.output, time)  # several copies may write one tensor: it is live from the first
        for name in (*op.inputs, op.output):
            last[_root(roots, name)] = time
    for name in outputs:
        last[_root(roots, name)] = len(ops)
    live = [Buffer(key=k, n_bytes=tensors[k].n_bytes, first=first[k], last=last[k]) for k in first]
    return live + _scratch_buffers(tensors, ops)


def place_buffers(buffers: Sequence[Buffer]) -> tuple[dict[Key, int], int]:
    """Finds offsets so that no two buffers that are live at the same time overlap.

    Greedy: in several orders, each into the lowest or into the tightest gap; the shortest arena is taken.

    Returns:
        The offset of each buffer, and the bytes of the arena.
    """
    orders: tuple[Callable[[Buffer], tuple[int, ...]], ...] = (
        lambda b: (-b.n_bytes, b.first),
        lambda b: (-b.n_bytes * (b.last - b.first + 1), b.first),
        lambda b: (b.first - b.last, -b.n_bytes, b.first),
        lambda b: (b.first, -b.n_bytes),
    )
    best: tuple[dict[Key, int], int] | None = None
    for order in orders:
        for tightest in (False, True):
            found = _place_in_order(sorted(buffers, key=order), tightest=tightest)
            if best is None or found[1] < best[1]:
                best = found
    return best or ({}, 0)


def _place_in_order(buffers: Iterable[Buffer], *, tightest: bool) -> tuple[dict[Key, int], int]:
    placed: list[tuple[int, int, Buffer]] = []
    for buffer in buffers:
        taken = sorted((start, end) for start, end, other in placed if other.meets(buffer))
        n_bytes = _up(buffer.n_bytes)
        offset = _find_gap(taken, n_bytes, tightest=tightest)
        placed.append((offset, offset + n_bytes, buffer))
    offsets = {buffer.key: start for start, _, buffer in placed}
    return offsets, max((end for _, end, _ in placed), default=0)


def _find_gap(taken: Iterable[tuple[int, int]], n_bytes: int, *, tightest: bool) -> int:
    """Offset of a gap between taken (start, end), sorted by start; behind them all if none is large enough."""
    gaps: list[tuple[int, int]] = []
    end_so_far = 0
    for start, end in taken:
        if start - end_so_far >= n_bytes:
            gaps.append((start - end_so_far, end_so_far))
        end_so_far = max(end_so_far, end)
    if not gaps:
        return end_so_far
    return min(gaps)[1] if tightest else gaps[0][1]


def _scratch_buffers(tensors: Mapping[str, Tensor], ops: Sequence[Op]) -> list[Buffer]:
    sizes = {
        time: strip_bytes(op, tensors[op.inputs[0]], tensors[op.output])
        for time, op in enumerate(ops)
        if isinstance(op, Conv)
    }
    return [Buffer(key=time, n_bytes=size, first=time, last=time) for time, size in sizes.items() if size]


def _find_roots(ops: Iterable[Op], inputs: Iterable[str]) -> dict[str, str]:
    """The tensor whose memory each tensor of the stage uses: itself, or for an alias its source's."""
    roots = {name: name for name in inputs}
    for op in ops:
        for name in op.inputs:
            _root(roots, name)
        # An input may be an alias of another input: it is copied in by itself, and keeps its own memory.
        roots.setdefault(op.output, roots[op.inputs[0]] if isinstance(op, Alias) else op.output)
    return roots


def _root(roots: Mapping[str, str], name: str) -> str:
    if name not in roots:
        raise ValueError(f"tensor {name!r} is read before anything writes it")
    return roots[name]


def _up(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
