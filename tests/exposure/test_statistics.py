"""Intervals, ratios that are undefined rather than numbers, ranks, and what is said of them."""

import math
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from cloister.exposure import statistics
from cloister.exposure.document import Comparison, Interval, LayerExposure, Memorisation, Ratio, Separation


def test_interval_is_students():
    values = [0.2, 0.5, 0.3, 0.9]
    found = statistics.interval(values)
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.mean == pytest.approx(np.mean(values))


def test_interval_of_one_value_has_no_ends():
    assert statistics.interval([0.5]) == Interval(mean=0.5, low=None, high=None)


def test_interval_holds_the_mean_in_95_of_100_samples():
    rng = np.random.default_rng(0)
    found = [statistics.interval(list(rng.normal(1, 2, 4))) for _ in range(1000)]
    assert 0.93 < np.mean([one.low <= 1 <= one.high for one in found]) < 0.97


def test_ratio_is_equation_4_repeat_by_repeat():
    found = statistics.ratio([1.0, 1.1], [0.5, 0.5], [0.01, 0.01])
    assert found.exposure.mean == pytest.approx((0.5 + 0.6 / 1.1) / 2)
    assert (found.p.mean, found.r.mean, found.undefined) == (pytest.approx(1.05), 0.5, None)


@pytest.mark.parametrize(
    ("p", "errors", "why"),
    [
        ([0.0, 0.0], [0.0, 0.0], "standard error"),
        ([-0.5, -0.4], [0.01, 0.01], "standard error"),
        ([0.1, 0.11], [0.06, 0.06], "standard error"),
        ([0.1, 0.9], [0.01, 0.01], "over the repeats"),
        ([1e-9] * 3, [1e-8] * 3, "standard error"),
        ([5.0] * 40 + [-0.1], [0.01] * 41, "in one repeat"),
    ],
)
def test_ratio_is_undefined_where_the_gap_cannot_be_told_from_0(p, errors, why):
    found = statistics.ratio(p, [0.1] * len(p), errors)
    assert found.exposure is None
    assert why in found.undefined
    assert found.p.mean == pytest.approx(np.mean(p))


def test_ratio_is_undefined_for_a_reason_that_is_known():
    assert statistics.ratio([1.0], [0.5], [0.01], "because").undefined == "because"


def test_no_ratio_is_ever_infinite_or_nan():
    rng = np.random.default_rng(1)
    for scale in 10.0 ** np.arange(-12, 3):
        p, r, errors = (list(row) for row in np.abs(rng.normal(size=(3, 3))) * scale)
        found = statistics.ratio(p, r, errors)
        assert (found.exposure is None) == (found.undefined is not None)
        assert found.exposure is None or math.isfinite(found.exposure.mean)


# --- members above non-members ---


def test_separation_is_the_auc_and_its_error_is_that_of_brunner_and_munzel():
    rng = np.random.default_rng(0)
    for shift, digits in [(0, 3), (0.4, 1), (-1, 0)]:  # the fewer digits, the more ties
        members, nonmembers = rng.normal(shift, 1, 60).round(digits), rng.normal(0, 2, 45).round(digits)
        found = statistics.separation(members, nonmembers)
        auc = metrics.roc_auc_score([1] * 60 + [0] * 45, np.concatenate([members, nonmembers]))
        assert found.value == pytest.approx(2 * auc - 1)
        # Their statistic is (AUC - 1/2) in its standard errors, with the same estimate of these.
        assert abs(found.value) / found.error == pytest.approx(abs(stats.brunnermunzel(members, nonmembers).statistic))


def test_separation_at_its_ends():
    low, high = np.array([0.0, 1.0]), np.array([2.0, 3.0, 3.0])
    assert statistics.separation(high, low) == Separation(value=1.0, error=0.0)
    assert statistics.separation(low, high) == Separation(value=-1.0, error=0.0)
    assert statistics.separation(np.zeros(4), np.zeros(5)) == Separation(value=0.0, error=0.0)


def test_memorisation_has_the_spread_of_samples_and_of_repeats():
    def found(value):
        return Separation(value=value, error=0.03)

    alone = statistics.memorisation([found(0.5)])
    assert (alone.mean, alone.high - alone.mean) == (0.5, pytest.approx(1.96 * 0.03))
    both = statistics.memorisation([found(0.49), found(0.51)])
    of_repeats = statistics.interval([0.49, 0.51])
    assert both.mean == pytest.approx(0.5)
    assert both.high - both.mean == pytest.approx(math.hypot(of_repeats.high - 0.5, 1.96 * 0.03 / 2**0.5))
    assert statistics.memorisation([found(0.99)]).high == 1.0


@pytest.mark.parametrize("n_repeats", [1, 4])
def test_memorisation_of_what_is_the_same_on_both_sides_holds_0_in_95_of_100(n_repeats):
    """As the repeats do: other halves of the same samples, and a fit of its own each time."""
    rng = np.random.default_rng(0)
    holds = []
    for _ in range(400):
        samples = rng.normal(size=(2, 60))
        repeats = []
        for _ in range(n_repeats):
            a, b = (rng.permutation(one)[:30] for one in samples + rng.normal(0, 0.5, samples.shape))
            repeats.append(statistics.separation(a, b))
        found = statistics.memorisation(repeats)
        holds.append(found.low <= 0 <= found.high)
    assert 0.92 < np.mean(holds) < 1  # with few repeats the two parts add up to rather more than 95 %


# --- ranks and words ---


def known(value):
    return Interval(mean=value, low=value - 0.1, high=value + 0.1)


def comparison(value):
    one = Interval(mean=1.0, low=None, high=None)
    exposure = None if value is None else Interval(mean=value, low=None, high=None)
    ratio = Ratio(p=one, r=one, exposure=exposure, undefined=None if exposure else "why")
    return Comparison(by_loss=ratio, by_accuracy=ratio)


def layers(values, sizes, reinitialised=None, unseen=None):
    count = len(values)
    return [
        LayerExposure(
            name=f"layer{depth}", depth=depth, parameters=("w",), n_parameters=size,
            measured=comparison(value), curve=(), equal_steps=comparison(value),
            reinitialised=None if reinitialised is None else comparison(anew),
            unseen_base=None if unseen is None else comparison(other),
            memorisation=Memorisation(measured=known(0.0), reinitialised=None, unseen_base=None),
        )
        for depth, (value, size, anew, other) in enumerate(
            zip(values, sizes, reinitialised or [None] * count, unseen or [None] * count, strict=True)
        )
    ]  # fmt: skip


def test_layers_are_ranked_by_exposure_and_undefined_ones_are_not_among_them():
    ranking = statistics.rank(layers([0.1, None, 0.9, 0.5], [1, 2, 3, 4]))
    assert ranking.layers == ("layer2", "layer3", "layer0")


def test_rank_correlations_are_spearmans():
    values, sizes = [0.1, 0.4, 0.3, 0.9, 0.8], [10, 30, 30, 20, 50]
    ranking = statistics.rank(layers(values, sizes))
    assert ranking.with_parameters == pytest.approx(stats.spearmanr(values, sizes).statistic)
    assert ranking.with_depth == pytest.approx(stats.spearmanr(values, range(5)).statistic)


@pytest.mark.parametrize(
    ("values", "sizes", "explains"),
    [
        ([0.2, 0.9, 0.5, 0.1], [20, 90, 50, 10], True),
        ([0.1, 0.2, 0.5, 0.9], [10, 90, 50, 20], False),  # by depth
        ([0.9, 0.2, 0.5, 0.1], [20, 30, 10, 90], False),
        ([0.9, 0.2], [90, 20], None),
        ([0.9, 0.2, 0.1], [20, 20, 20], None),
    ],
)
def test_words_say_whether_capacity_explains(values, sizes, explains):
    found = layers(values, sizes)
    ranking = statistics.rank(found)
    assert ranking.capacity_explains is explains
    said = " ".join(statistics.describe(found, ranking))
    assert ("capacity explains the ranking" in said) == (explains is True)
    assert ("does not explain" in said) == (explains is False)


def test_words_say_what_the_controls_found():
    found = layers([0.8, 0.6, 0.5], [1, 2, 3], reinitialised=[0.79, 0.1, None], unseen=[0.9, 1.0, None])
    said = " ".join(statistics.describe(found, statistics.rank(found)))
    assert "1 of 2 layers score at least 90%" in said
    assert "a high value is no sign of memory: median 0.95" in said
    found = layers([0.8, 0.6, 0.5], [1, 2, 3], reinitialised=[0.1, 0.1, 0.1], unseen=[0.0, 0.1, 0.0])
    said = " ".join(statistics.describe(found, statistics.rank(found)))
    assert "none of 3 layers keeps 90%" in said
    assert "above a base that never saw" in said


def test_words_say_how_many_layers_lie_above_0():
    values, unseen = [0.05, 0.3, 0.15], [0.02, -0.3, 0.0]
    found = [
        msgspec.structs.replace(
            layer, memorisation=Memorisation(measured=known(a), reinitialised=None, unseen_base=known(b))
        )
        for layer, a, b in zip(layers([None] * 3, [1, 2, 3]), values, unseen, strict=True)
    ]
    ranking = statistics.rank(found, statistics.memorisation_of)
    assert ranking.layers == ("layer1", "layer2", "layer0")
    said = statistics.describe(found, statistics.rank(found), ranking)
    assert said == (
        "memorisation lies above 0 in 2 of 3 layers; highest in `layer1`; the intervals of 1 others meet its own",
        "memorisation lies above 0 in 0 of 3 layers of a base that never saw the members; 0 are expected",
    )


def test_without_values_there_are_no_words():
    found = layers([None, None, None], [1, 2, 3], reinitialised=[None] * 3, unseen=[None] * 3)
    assert statistics.describe(found, statistics.rank(found)) == ()


def test_documents_are_read_and_judged_without_torch():
    code = "import sys, cloister, cloister.exposure.statistics; cloister.Exposure; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
