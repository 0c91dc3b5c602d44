"""The guard against getting slower: what it takes for a ratio that got worse."""

import pytest
from benchmarks import guard

from cloister.bench.compare import BenchRow


def row(low, ratio, high, **fields):
    values = {"model": "vgg7", "engine": "cloister-inside", "against": "cloister-outside", "batch": 1, "inside": "all"}
    more = {"bits": 8, "n_inside": 8, "budget_bytes": None, "inside_peak_bytes": 1, "weight_bytes": 1, "agreement": 1.0}
    return BenchRow(ratio=ratio, ratio_low=low, ratio_high=high, **values | more | fields)


@pytest.mark.parametrize(
    ("now", "n_worse"), [((1.0, 1.1, 1.2), 0), ((1.2, 1.5, 1.6), 0), ((1.35, 1.5, 1.6), 1), ((0.5, 0.6, 0.7), 0)]
)
def test_only_an_interval_above_the_recorded_one_is_worse(now, n_worse):
    assert len(guard.worse([row(0.9, 1.0, 1.2)], [row(*now)], 1.1)) == n_worse


def test_rows_are_compared_with_their_own():
    before = [row(0.9, 1.0, 1.1), row(0.9, 1.0, 1.1, batch=8)]
    now = [row(2, 2, 2, batch=8), row(9, 9, 9, engine="cloister-inside@1MiB")]
    assert [(old.batch, new.ratio) for old, new in guard.worse(before, now, 1.1)] == [(8, 2)]


def test_only_ours_against_what_is_there_is_measured_again():
    class Record:
        rows = (
            row(1, 1, 1),
            row(1, 1, 1, engine="torch-eager-fp32", inside=None),
            row(1, 1, 1, against="torch-eager-fp32"),
        )

    assert [guard.key(one)[2] for one in guard.guarded(Record)] == ["cloister-outside", "torch-eager-fp32"]
