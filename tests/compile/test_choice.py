"""The choice of slices, residents and lanes: the best of its kind, and never more than a call carries."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.compile import ir
from cloister.compile.choice import MAX_LANES, Choice, Footprint, choose, smallest_budget
from cloister.compile.slicing import Block, split_blocks
from cloister.errors import PlanError
from tests.strategies import REPEATABLE

SLACK, OPENING_BYTES, GATHERED_PER_BYTE, PRODUCTS_PER_BYTE = 1.1, 2048, 16, 256
OPENING_SHARE, WAKING_BYTES = {1: 1.0, 2: 0.8, 4: 0.6}, 200_000


def block(name: str, n_units: int, n_taps: int) -> Block:
    """A layer whose units, rounded up to a multiple of 4, have 12 + n_taps bytes, taps rounded up likewise."""
    op = ir.Conv(
        inputs=("x",),
        output="y",
        layer=name,
        weight=np.zeros((n_units, 1, 1, n_taps), np.int8),
        bias=np.zeros(n_units, np.int32),
        multiplier=np.ones(n_units, np.float32),
        stride=(1, 1),
        padding=(0, 0),
        dilation=(1, 1),
        groups=1,
        clamp=(-128, 127),
    )
    return Block(layer=name, op=op)


def make_footprint(layers, *, arena_bytes=1000, gathered=(), products=(), payload=110, call_bytes=None) -> Footprint:
    """Layers are (units, taps)."""
    return Footprint(
        unsliced_bytes=400,
        arena_bytes=arena_bytes,
        blocks=tuple(block(f"fc{i}", *layer) for i, layer in enumerate(layers)),
        gathered=tuple(gathered) or (0,) * len(layers),
        products=tuple(products) or (0,) * len(layers),
        payloads=(payload,),
        call_bytes=call_bytes,
    )


@st.composite
def footprints(draw) -> Footprint:
    layers = draw(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 900)), min_size=1, max_size=4))
    gathered = [draw(st.integers(0, 10**5)) for _ in layers]
    products = [draw(st.integers(0, 10**6)) for _ in layers]
    return make_footprint(layers, arena_bytes=draw(st.integers(1, 20000)), gathered=gathered, products=products)


def sizes_of(footprint: Footprint, choice: Choice) -> list[int]:
    return [piece.n_bytes for piece in split_blocks(footprint.blocks, choice.cuts)]


def need_of(footprint: Footprint, choice: Choice) -> int:
    """Inside memory, by the page of the format."""
    sizes = sizes_of(footprint, choice)
    parts = [400 + 20 * len(sizes), choice.slot_bytes, *[footprint.arena_bytes] * choice.lanes]
    return 4096 + sum(-(-n // 64) * 64 for n in (*parts, *(sizes[i] for i in choice.residents)))


def costs_of(footprint: Footprint, choice: Choice) -> tuple[float, float]:
    """Of an image by itself, and of one in a full group."""
    streamed = [n for i, n in enumerate(sizes_of(footprint, choice)) if i not in choice.residents]
    places = max(n for n in OPENING_SHARE if n == 1 or (streamed and n * up(max(streamed)) <= up(choice.slot_bytes)))
    opened = OPENING_SHARE[places] * (sum(streamed) + OPENING_BYTES * len(streamed))
    opened += WAKING_BYTES if places > 1 else 0
    gathered = sum(g * (n - 1) for g, n in zip(footprint.gathered, choice.cuts, strict=True)) / GATHERED_PER_BYTE
    wasted = 0
    for block, products, n in zip(footprint.blocks, footprint.products, choice.cuts, strict=True):
        units = [piece.n_units for piece in split_blocks([block], [n])]
        wasted += sum(products * (-n_units % 16 // 4) for n_units in units[:-1])
    computed = gathered + wasted / PRODUCTS_PER_BYTE
    return opened + computed, opened / choice.lanes + computed


def up(n_bytes: int) -> int:
    return -(-n_bytes // 64) * 64


def all_choices(footprint: Footprint, budget: int):
    """Every slice limit in bytes, every number of lanes, every number of the smallest slices resident."""
    largest = max(b.n_bytes for b in footprint.blocks)
    seen = set()
    for limit in range(max(b.step_bytes for b in footprint.blocks), largest + 1):
        cuts = tuple(math.ceil(b.n_steps / (limit // b.step_bytes)) for b in footprint.blocks)
        if cuts in seen:
            continue
        seen.add(cuts)
        sizes = sizes_of(footprint, Choice(cuts=cuts, residents=frozenset(), slot_bytes=0))
        order = sorted(range(len(sizes)), key=lambda i: sizes[i])
        for places, lanes in itertools.product(OPENING_SHARE, range(1, MAX_LANES + 1)):
            for n_resident in range(len(sizes) + 1):
                largest = max((sizes[i] for i in order[n_resident:]), default=0)
                slot = (places - 1) * up(largest) + largest
                choice = Choice(cuts=cuts, residents=frozenset(order[:n_resident]), slot_bytes=slot, lanes=lanes)
                if need_of(footprint, choice) > budget:
                    break
                yield choice


@REPEATABLE
@given(footprints(), st.floats(0, 1))
def test_no_choice_of_the_kind_is_better(footprint, share):
    least = smallest_budget(footprint)
    most = need_of(footprint, choose(footprint, None, "auto"))
    budget = least + int(share * (most - least))
    choice = choose(footprint, budget, "auto")
    assert need_of(footprint, choice) <= budget
    costs = [costs_of(footprint, other) for other in all_choices(footprint, budget)]
    lone, shared = costs_of(footprint, choice)
    bound = SLACK * min(other for other, _ in costs)
    assert lone <= bound
    assert shared == pytest.approx(min(other for alone, other in costs if alone <= bound))


@REPEATABLE
@given(footprints(), st.integers(0, 4000), st.integers(1, 9000))
def test_larger_budgets_cost_an_image_no_more(footprint, over, more):
    budget = smallest_budget(footprint) + over
    small, large = (costs_of(footprint, choose(footprint, b, "auto"))[0] for b in (budget, budget + more))
    assert large <= SLACK * small


def test_memory_that_saves_little_by_residents_goes_to_lanes():
    footprint = make_footprint([(64, 4000)] * 8, arena_bytes=10000)
    choice = choose(footprint, 260_000, "auto")
    assert choice.lanes > 4
    assert costs_of(footprint, choice)[1] < costs_of(footprint, choice)[0] / 4


def test_memory_that_saves_much_by_residents_stays_theirs():
    footprint = make_footprint([(16, 1000)] * 8, arena_bytes=30000)
    everything = choose(footprint, None, "auto")
    choice = choose(footprint, need_of(footprint, everything) - 20000, "auto")
    assert choice.lanes == 1
    assert len(choice.residents) > 6


def test_nothing_streams_in_one_lane_only():
    footprint = make_footprint([(8, 100)] * 3)
    for budget in (None, 2**31):
        choice = choose(footprint, budget, "auto")
        assert (choice.lanes, choice.slot_bytes, len(choice.residents)) == (1, 0, 3)


# --- Calls -------------------------------------------------------------------------------------------------------


def carried(footprint: Footprint, choice: Choice) -> int:
    """Bytes that the largest call takes at most: run block, images, results and the largest slice, in whole pages."""
    slice_bytes = max(sizes_of(footprint, choice)) + 16
    return 4096 + choice.lanes * footprint.payloads[0] + 2 * 4096 + -(-slice_bytes // 4096) * 4096


@REPEATABLE
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 3000)), min_size=1, max_size=3),
    st.integers(1, 18000),
    st.integers(8, 40),
    st.one_of(st.none(), st.floats(0, 1)),
    st.sampled_from(["auto", "off"]),
)
def test_a_call_carries_every_slice_beside_the_images_of_a_group(layers, payload, n_pages, share, kind):
    footprint = make_footprint(layers, payload=payload, call_bytes=4096 * n_pages + 100)
    try:
        budget = None
        if share is not None:
            least = smallest_budget(footprint)
            budget = least + int(share * sum(b.n_bytes for b in footprint.blocks))
        choice = choose(footprint, budget, kind)
    except PlanError:
        if kind == "auto":
            lone = Choice(cuts=tuple(b.n_steps for b in footprint.blocks), residents=frozenset(), slot_bytes=0)
            assert carried(footprint, lone) > footprint.call_bytes
        return
    assert carried(footprint, choice) <= footprint.call_bytes
    if budget is not None:
        assert need_of(footprint, choice) <= budget


def test_smallest_budget_within_calls_is_exact():
    footprint = make_footprint([(64, 2000), (300, 70)], call_bytes=32768)
    least = smallest_budget(footprint)
    assert need_of(footprint, choose(footprint, least, "auto")) <= least
    with pytest.raises(PlanError, match=str(least)):
        choose(footprint, least - 1, "auto")


def test_units_that_no_call_carries_are_named_with_the_numbers():
    footprint = make_footprint([(4, 10000), (4, 10), (4, 20000)], call_bytes=20480)
    for attempt in (lambda: choose(footprint, None, "auto"), lambda: smallest_budget(footprint)):
        with pytest.raises(PlanError, match=r"20480 bytes leaves 4080 .*`fc0` \(40048 bytes\), `fc2`") as caught:
            attempt()
        assert "`fc1`" not in str(caught.value)


def test_layers_that_no_call_carries_whole_are_named_with_the_way_out():
    footprint = make_footprint([(40, 1000), (4, 10)], call_bytes=32768)
    with pytest.raises(PlanError, match=r"whole `fc0` \(40480 bytes\)") as caught:
        choose(footprint, None, "off")
    assert "--slice auto" in caught.value.hint
    assert choose(footprint, None, "auto").cuts == (3, 1)


def test_images_that_no_call_carries_leave_nothing_for_slices():
    footprint = make_footprint([(4, 10)], payload=30000, call_bytes=32768)
    with pytest.raises(PlanError, match="leaves 0 for a slice"):
        choose(footprint, None, "auto")


def test_more_slices_than_the_format_knows_are_refused():
    footprint = make_footprint([(40000, 1500)], call_bytes=24576)
    with pytest.raises(PlanError, match="at most 8192 slices"):
        choose(footprint, None, "auto")
    assert smallest_budget(make_footprint([(40000, 1500)])) > 0
