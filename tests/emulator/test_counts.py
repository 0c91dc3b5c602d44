"""Counted instructions are the same in every run, so they can be held to what is claimed."""

import pytest

from cloister.bench.counts import count_instructions

pytestmark = [pytest.mark.emulator, pytest.mark.xdist_group("emulator")]


def test_counts_agree_between_runs_and_keep_to_the_claims():
    first, again = (count_instructions(["resnet20"], budgets=[None, 128 << 10], repeats=3) for _ in range(2))
    assert [(row.inside, row.budget_bytes) for row in first.rows] == [
        (row.inside, row.budget_bytes) for row in again.rows
    ]
    for one, other in zip(first.rows, again.rows, strict=True):
        assert other.instructions == pytest.approx(one.instructions, rel=1e-3)
        assert one.crossing + one.unsealing + one.compute == pytest.approx(one.instructions)
    outside, resident, streamed = first.rows[0], first.rows[1], first.rows[2]
    assert (outside.inside, outside.calls, resident.streamed_bytes) == ("none", 0, 0)
    assert resident.against_outside <= 1.10
    assert streamed.streamed_bytes > 0
    assert streamed.unsealing_per_byte <= 30
