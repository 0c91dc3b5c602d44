"""The choice of slices: how layers are cut, which slices stay open inside, and how many images share an opening.

What a slice may have at most decides all cuts, into as few and as equal slices as that allows. The smallest slices stay
open, as many as fit; the others stream through one buffer, the slot. Of all such choices that fit, those are looked for
that open the least for an image by itself; among those that come near, the one that opens the least in a batch.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal

from cloister.compile.slicing import Block, split_blocks, split_steps
from cloister.errors import PlanError
from cloister.units import format_bytes

__all__ = [
    "MAX_LANES",
    "PAGE_BYTES",
    "Choice",
    "Footprint",
    "choose",
    "smallest_budget",
    "up",
    "up_page",
]

_SLICE_BYTES = 20
_SEAL_BYTES = 16
_SESSION_BYTES = 4096
_MAX_SLICES = 8192
#: Parameters of a call count in pages.
PAGE_BYTES = 4096
#: Images that run side by side at most: each one more would save less than a sixteenth of the openings.
MAX_LANES = 16
#: What an opening costs beside its bytes, in bytes: setting up the cipher and the checks take as long as opening these.
_OPENING_BYTES = 2048
#: A convolution's slices copy its input anew, each for itself; so many bytes cost as much as opening one.
_GATHERED_PER_BYTE = 16
#: Steps that a grain lacks are computed all the same; so many multiply-adds cost as much as opening a byte.
_PRODUCTS_PER_BYTE = 256
#: An image by itself may cost this much more than the least, where memory for lanes comes of it.
_LONE_IMAGE_SLACK = 1.1
#: Places that the slot may have, and what an opening costs with them. While the slice in one is in use, a second thread
#: opens the next one in another; with two more the first thread opens slices too, instead of waiting for one.
_OPENING_SHARE = {1: 1.0, 2: 0.8, 4: 0.6}
#: Until a second thread is awake so much is opened without it.
_WAKING_BYTES = 200_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a program needs whatever its slicing.

    Attributes:
        unsliced_bytes: of the program without its slice table.
        arena_bytes: of activations and scratch of one image.
        blocks: what can be cut.
        gathered: bytes that a further slice of each block copies before it can multiply.
        products: multiply-adds of one step of each block.
        payloads: bytes that go into a stage or come out of it for one image, for each stage.
        call_bytes: what the parameters of one call may have together, each rounded up to 4096; None for no limit.
    """

    unsliced_bytes: int
    arena_bytes: int
    blocks: tuple[Block, ...]
    gathered: tuple[int, ...]
    products: tuple[int, ...]
    payloads: tuple[int, ...]
    call_bytes: int | None = None

    def inside_bytes(self, n_slices: int, resident_bytes: int, slot_bytes: int, lanes: int = 1) -> int:
        """Inside memory of the program with this slicing, as the format defines it."""
        program_bytes = self.unsliced_bytes + _SLICE_BYTES * n_slices
        return _SESSION_BYTES + up(program_bytes) + lanes * up(self.arena_bytes) + up(resident_bytes) + up(slot_bytes)

    @property
    def places(self) -> tuple[int, ...]:
        """Into how many parts the slot may be divided: only local enclaves have a second thread, and they no calls."""
        return tuple(_OPENING_SHARE) if self.call_bytes is None else (1,)

    def most_slice_bytes(self, lanes: int) -> float:
        """Bytes of the largest slice that a call can carry, sealed, beside the run block and the images of a group."""
        if self.call_bytes is None:
            return math.inf
        # The run block has a page of its own; images and results waste less than one each.
        left = self.call_bytes - 3 * PAGE_BYTES - lanes * max(self.payloads)
        return left - left % PAGE_BYTES - _SEAL_BYTES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """The slicing.

    Attributes:
        cuts: number of slices of each block.
        residents: indices of the slices that stay open.
        slot_bytes: of the buffer that the others stream through.
        lanes: images that run side by side, so that a streamed slice is opened once for all of them.
    """

    cuts: tuple[int, ...]
    residents: frozenset[int]
    slot_bytes: int
    lanes: int = 1


def choose(footprint: Footprint, budget_bytes: int | None, slicing: Literal["auto", "off"]) -> Choice:
    """Picks the slicing for a budget.

    Args:
        footprint: of the program.
        budget_bytes: inside memory that it may need; None for no limit.
        slicing: `auto`, or `off`: every layer is one slice.

    Raises:
        PlanError: if the program does not fit into the budget, or a slice not into a call.
    """
    _check_calls(footprint, slicing)
    fewest = next(_all_cuts(footprint)) if slicing == "auto" else _whole(footprint)
    everything = Choice(cuts=fewest, residents=frozenset(range(sum(fewest))), slot_bytes=0)
    if budget_bytes is None or _need(footprint, everything) <= budget_bytes:
        return everything
    found = list(_candidates(footprint, budget_bytes, slicing))
    if not found:
        raise _too_small(footprint, budget_bytes, slicing)
    least = min(candidate.lone_cost for candidate in found)
    near = (candidate for candidate in found if candidate.lone_cost <= _LONE_IMAGE_SLACK * least)
    best = min(near, key=lambda candidate: (candidate.cost, candidate.lanes))
    return _fill_residents(footprint, best, budget_bytes)


def _need(footprint: Footprint, choice: Choice) -> int:
    sizes = _slice_sizes(footprint, choice.cuts)
    resident_bytes = sum(up(sizes[i]) for i in choice.residents)
    return footprint.inside_bytes(len(sizes), resident_bytes, choice.slot_bytes, choice.lanes)


def _streaming_need(footprint: Footprint, cuts: Sequence[int], lanes: int = 1, places: int = 1) -> int:
    """Inside memory if every slice streams: the least with these cuts, since a resident only adds to it."""
    return footprint.inside_bytes(sum(cuts), 0, _slot_bytes(_largest(footprint, cuts), places), lanes)


def _slot_bytes(largest: int, places: int) -> int:
    """Bytes of a slot with room for so many of the largest slice."""
    return (places - 1) * up(largest) + largest


def _largest(footprint: Footprint, cuts: Sequence[int]) -> int:
    """Bytes of the largest slice."""
    return max((-(-b.n_steps // n) * b.step_bytes for b, n in zip(footprint.blocks, cuts, strict=True)), default=0)


def _all_cuts(footprint: Footprint) -> Iterator[tuple[int, ...]]:
    """Every slicing worth a look: for each largest slice that there can be, as few slices as allow it.

    Fewest slices first. More slices shorten the buffer but lengthen the slice table, so the memory needed falls,
    then rises: no shortcut finds the least.
    """
    most = footprint.most_slice_bytes(1)
    sizes = {-(-b.n_steps // n) * b.step_bytes for b in footprint.blocks for n in range(1, b.n_steps + 1)}
    if not sizes:
        yield ()
    for slice_bytes in sorted((size for size in sizes if size <= most), reverse=True):
        if any(block.step_bytes > slice_bytes for block in footprint.blocks):
            return
        cuts = tuple(-(-b.n_steps // (slice_bytes // b.step_bytes)) for b in footprint.blocks)
        if sum(cuts) > _MAX_SLICES:
            return
        yield cuts


# --- What a choice costs -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A slicing that fits, with as many residents as fit.

    Attributes:
        places: parts of the slot.
        opened: what an image by itself costs in openings: the bytes, and `_OPENING_BYTES` for each.
        computed: what it costs more in computing than with whole layers, in bytes opened.
    """

    cuts: tuple[int, ...]
    lanes: int
    places: int
    opened: float
    computed: float

    @property
    def lone_cost(self) -> float:
        """Of an image by itself."""
        return self.opened + self.computed

    @property
    def cost(self) -> float:
        """Of an image in a full group: openings are shared, computing is not."""
        return self.opened / self.lanes + self.computed


def _candidates(footprint: Footprint, budget_bytes: int, slicing: Literal["auto", "off"]) -> Iterator[_Candidate]:
    for cuts in _all_cuts(footprint) if slicing == "auto" else [_whole(footprint)]:
        sizes = _count_sizes(footprint, cuts)
        computed = _computed_anew(footprint, cuts)
        for places, lanes in itertools.product(footprint.places, range(1, MAX_LANES + 1)):
            room = budget_bytes - _streaming_need(footprint, cuts, lanes, places)
            if room < 0 or _largest(footprint, cuts) > footprint.most_slice_bytes(lanes):
                continue
            opened = _opened(sizes, room) * _OPENING_SHARE[places] + (_WAKING_BYTES if places > 1 else 0)
            yield _Candidate(cuts=cuts, lanes=lanes, places=places, opened=opened, computed=computed)


def _computed_anew(footprint: Footprint, cuts: Sequence[int]) -> float:
    """What further slices gather, and what they compute for nothing, in bytes opened."""
    gathered = sum(g * (n - 1) for g, n in zip(footprint.gathered, cuts, strict=True))
    wasted = sum(
        products * sum(-steps % block.grain for steps in split_steps(block, n)[:-1])
        for products, block, n in zip(footprint.products, footprint.blocks, cuts, strict=True)
    )
    return gathered / _GATHERED_PER_BYTE + wasted / _PRODUCTS_PER_BYTE


def _whole(footprint: Footprint) -> tuple[int, ...]:
    """Every layer one slice."""
    return (1,) * len(footprint.blocks)


def _count_sizes(footprint: Footprint, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """(bytes, how many) of slices, the smallest first."""
    counts: dict[int, int] = {}
    for block, cut in zip(footprint.blocks, cuts, strict=True):
        for n_steps in split_steps(block, cut):
            size = n_steps * block.step_bytes
            counts[size] = counts.get(size, 0) + 1
    return sorted(counts.items())


def _opened(sizes: Sequence[tuple[int, int]], room: int) -> int:
    """What is opened for an image if the smallest slices stay, as many as fit into `room` bytes."""
    opened = 0
    for size, count in sizes:
        n_resident = 0 if opened else min(count, room // up(size))
        room -= n_resident * up(size)
        opened += (count - n_resident) * (size + _OPENING_BYTES)
    return opened


def _fill_residents(footprint: Footprint, best: _Candidate, budget_bytes: int) -> Choice:
    """Keeps the smallest slices open: each opening has a fixed cost, so that many small ones save the most."""
    sizes = _slice_sizes(footprint, best.cuts)
    room = budget_bytes - _streaming_need(footprint, best.cuts, best.lanes, best.places)
    residents: set[int] = set()
    for index in sorted(range(len(sizes)), key=lambda i: (sizes[i], i)):
        room -= up(sizes[index])
        if room < 0:
            break
        residents.add(index)
    slot_bytes = _slot_bytes(max(sizes, default=0), best.places)
    return Choice(cuts=best.cuts, residents=frozenset(residents), slot_bytes=slot_bytes, lanes=best.lanes)


def _slice_sizes(footprint: Footprint, cuts: Sequence[int]) -> list[int]:
    return [piece.n_bytes for piece in split_blocks(footprint.blocks, cuts)]


def smallest_budget(footprint: Footprint) -> int:
    """The least budget in bytes for which `choose` finds a slicing with `auto`."""
    _check_calls(footprint, "auto")
    return min(_streaming_need(footprint, cuts) for cuts in _all_cuts(footprint))


def _check_calls(footprint: Footprint, slicing: Literal["auto", "off"]) -> None:
    """Refuses what no call can carry, and more slices than the format knows."""
    most = footprint.most_slice_bytes(1)
    parts = [(b, b.step_bytes if slicing == "auto" else b.n_bytes) for b in footprint.blocks]
    too_large = [f"`{block.layer}` ({size} bytes)" for block, size in parts if size > most]
    if too_large:
        what = "smallest slice of" if slicing == "auto" else "whole"
        raise PlanError(
            f"a call of {footprint.call_bytes} bytes leaves {max(0, int(most))} for a slice beside its images; "
            f"expected no more {what} {', '.join(too_large)}",
            "keep these layers outside" if slicing == "auto" else "cut them: --slice auto",
        )
    if slicing == "auto" and next(_all_cuts(footprint), None) is None:
        raise PlanError(
            f"expected at most {_MAX_SLICES} slices, but slices of {int(most)} bytes give more",
            "keep fewer layers inside",
        )


def _too_small(footprint: Footprint, budget_bytes: int, slicing: Literal["auto", "off"]) -> PlanError:
    least = smallest_budget(footprint)
    if slicing == "auto":
        return PlanError(
            f"expected a budget of at least {least} bytes for these layers, but got {budget_bytes}",
            f"give a budget of {least} bytes ({format_bytes(least)}) or more, or keep fewer layers inside",
        )
    whole = _whole(footprint)
    least_whole = _streaming_need(footprint, whole)
    free = max(0, budget_bytes - footprint.inside_bytes(len(whole), 0, 0))
    layers = ", ".join(f"`{b.layer}` ({b.n_bytes} bytes)" for b in footprint.blocks if up(b.n_bytes) > free)
    subject = f"layers do not fit whole: {layers}" if layers else "activations do not fit"
    return PlanError(
        f"{subject}; a budget of {budget_bytes} bytes leaves {free} bytes for one layer",
        f"give a budget of {least_whole} bytes or more; with --slice auto, {least} bytes are enough",
    )


def up(n_bytes: int) -> int:
    """Rounds up to a multiple of 64."""
    return -(-n_bytes // 64) * 64


def up_page(n_bytes: int) -> int:
    """Rounds up to whole pages: so much of a call a parameter takes."""
    return -(-n_bytes // PAGE_BYTES) * PAGE_BYTES
