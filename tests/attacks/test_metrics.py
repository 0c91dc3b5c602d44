"""Metrics equal scikit-learn's, intervals hold what they should, and what too few samples cannot tell is undefined."""

import importlib.util
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from cloister.attacks import metrics
from cloister.attacks.figure import draw_roc
from cloister.attacks.metrics import Difference, Metrics
from cloister.errors import InputError, UserError

QUICK = {"n_resamples": 100}


def normals(n, shift, seed=0):
    """Scores of n members and n non-members, the members' higher by `shift`."""
    rng = np.random.default_rng(seed)
    is_member = rng.permutation(2 * n) < n
    return rng.normal(size=2 * n) + shift * is_member, is_member


def slow_tpr(scores, is_member, fpr):
    """The largest share of members found at a threshold with at most this share of false positives."""
    best = 0.0
    for threshold in np.unique(scores):
        if (scores[~is_member] >= threshold).mean() <= fpr:
            best = max(best, (scores[is_member] >= threshold).mean())
    return best


# Few distinct values: most scores are ties.
TIED = st.tuples(
    arrays(np.float64, 40, elements=st.sampled_from([-1.0, 0.0, 0.5, 0.5000001, 2.0, 1e300])),
    arrays(np.bool_, 40).filter(lambda one: 2 <= one.sum() <= 38),
)


@settings(max_examples=50, deadline=None)
@given(TIED)
def test_values_are_scikit_learns_also_with_ties(case):
    scores, is_member = case
    found = metrics.evaluate(scores, is_member, fprs=(), **QUICK)
    assert found.auc.value == pytest.approx(roc_auc_score(is_member, scores), abs=1e-12)
    best = max(balanced_accuracy_score(is_member, scores >= threshold) for threshold in [*np.unique(scores), math.inf])
    assert found.best_balanced_accuracy.value == pytest.approx(best, abs=1e-12)
    calls = scores >= metrics.best_threshold(scores, is_member)
    assert balanced_accuracy_score(is_member, calls) == pytest.approx(best, abs=1e-12)
    assert metrics.judge(calls, is_member, **QUICK).value == pytest.approx(best, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(arrays(np.float64, 90, elements=st.integers(0, 12).map(float)), st.integers(0, 5))
def test_true_positives_are_those_of_a_loop(scores, seed):
    is_member = np.random.default_rng(seed).permutation(90) < 45
    found = metrics.evaluate(scores, is_member, fprs=(0.1, 0.3), **QUICK)
    for rate in found.rates:
        assert rate.tpr.value == pytest.approx(slow_tpr(scores, is_member, rate.fpr), abs=1e-12)
        if rate.threshold is not None:
            assert (scores[is_member] >= rate.threshold).mean() == pytest.approx(rate.tpr.value)
            assert (scores[~is_member] >= rate.threshold).mean() <= rate.fpr + 1e-12
        else:
            assert rate.tpr.value == 0
    for fpr, tpr in zip(found.roc.fpr, found.roc.tpr, strict=True):
        assert tpr == pytest.approx(slow_tpr(scores, is_member, fpr * (1 + 1e-9)), abs=1e-12)


def test_resamples_are_scikit_learns_with_weights():
    scores, is_member = normals(60, 0.7)
    scores = scores.round(1)
    curve = metrics._Curve(scores, is_member)
    for members, nonmembers in metrics._resamples(curve, 20, seed=3):
        ours = metrics._auc(*curve.rates(members, nonmembers))
        for row, value in enumerate(ours):
            weights = np.empty(len(scores))
            weights[is_member], weights[~is_member] = members[row], nonmembers[row]
            assert value == pytest.approx(roc_auc_score(is_member, scores, sample_weight=weights), abs=1e-12)
            assert members[row].sum() == nonmembers[row].sum() == 60


def test_resamples_do_not_depend_on_how_much_memory_there_is(monkeypatch):
    scores, is_member = normals(40, 0.5)
    whole = metrics.evaluate(scores, is_member, **QUICK)
    monkeypatch.setattr(metrics, "_CHUNK", 40 * 7)
    pieces = metrics.evaluate(scores, is_member, **QUICK)
    assert pieces.auc.value == whole.auc.value
    assert pieces.auc.low == pytest.approx(whole.auc.low, abs=0.03)


def test_interval_of_the_auc_is_as_wide_as_theory_says():
    """Hanley and McNeil (1982): the standard error where both kinds are normal is about this."""
    scores, is_member = normals(1000, 1.0)
    found = metrics.evaluate(scores, is_member, fprs=())
    a = found.auc.value
    q1, q2 = a / (2 - a), 2 * a**2 / (1 + a)
    error = math.sqrt((a * (1 - a) + 999 * (q1 - a**2 + q2 - a**2)) / 1000**2)
    assert (found.auc.high - found.auc.low) / (2 * 1.96) == pytest.approx(error, rel=0.15)
    assert found.auc.low < stats.norm.cdf(1 / math.sqrt(2)) < found.auc.high


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    held = [
        (found := metrics.evaluate(*normals(100, 0.0, seed), fprs=(), n_resamples=200)).auc.low <= 0.5 <= found.auc.high
        for seed in range(250)
    ]
    assert 0.9 <= np.mean(held) <= 0.98


def test_a_threshold_from_the_samples_themselves_flatters_and_one_from_the_other_half_does_not():
    found = [metrics.evaluate(*normals(50, 0.0, seed), fprs=(), **QUICK) for seed in range(40)]
    assert np.mean([one.best_balanced_accuracy.value for one in found]) > 0.55
    assert np.mean([one.balanced_accuracy.value for one in found]) == pytest.approx(0.5, abs=0.02)


def test_a_rate_needs_three_times_as_many_nonmembers_as_one_false_positive():
    assert [metrics.least_nonmembers(fpr) for fpr in metrics.FPRS] == [30, 300, 3000]
    scores, is_member = normals(299, 1.0)
    tenth, hundredth, thousandth = metrics.evaluate(scores, is_member, **QUICK).rates
    assert tenth.undefined is None
    assert tenth.exact[0] < tenth.tpr.value < tenth.exact[1]
    assert hundredth.tpr is hundredth.exact is hundredth.threshold is None
    assert "at least 300 non-members" in hundredth.undefined
    assert "at least 3,000 non-members for a false-positive rate of 0.001, but there are 299" in thousandth.undefined
    assert metrics.compare(scores, scores, is_member, **QUICK).rates[1].undefined == hundredth.undefined


def test_clopper_pearson_is_the_beta_distributions():
    low, high = metrics.clopper_pearson(7, 50)
    assert low == pytest.approx(stats.beta.ppf(0.025, 7, 44))
    assert high == pytest.approx(stats.beta.ppf(0.975, 8, 43))
    assert metrics.clopper_pearson(0, 50)[0] == 0
    assert metrics.clopper_pearson(50, 50)[1] == 1


def test_a_paired_difference_is_surer_than_two_intervals():
    scores, is_member = normals(400, 1.0)
    weaker = scores + 0.5 * np.random.default_rng(9).normal(size=800)
    found = metrics.compare(scores, weaker, is_member)
    alone = [metrics.evaluate(one, is_member) for one in (scores, weaker)]
    assert found.auc.value == pytest.approx(alone[0].auc.value - alone[1].auc.value)
    assert found.balanced_accuracy.value == pytest.approx(
        alone[0].balanced_accuracy.value - alone[1].balanced_accuracy.value
    )
    assert found.rates[0].tpr.value == pytest.approx(alone[0].rates[0].tpr.value - alone[1].rates[0].tpr.value)
    assert found.auc.low > 0
    assert alone[1].auc.high > alone[0].auc.low
    same = metrics.compare(scores, 3 * scores + 1, is_member)
    assert (same.auc.low, same.auc.high, same.rates[0].tpr.high) == (0, 0, 0)


def test_documents_survive_json():
    scores, is_member = normals(40, 1.0)
    for document, kind in [
        (metrics.evaluate(scores, is_member, **QUICK), Metrics),
        (metrics.compare(scores, -scores, is_member, **QUICK), Difference),
    ]:
        assert msgspec.json.decode(msgspec.json.encode(document), type=kind) == document


def test_the_same_seed_gives_the_same_and_another_one_other_intervals():
    scores, is_member = normals(40, 1.0)
    once, again, other = (metrics.evaluate(scores, is_member, seed=seed, **QUICK) for seed in (1, 1, 2))
    assert once == again
    assert once.auc != other.auc


@pytest.mark.parametrize(
    ("scores", "is_member", "says"),
    [
        ([1.0, np.nan, 0.0, 1.0], [True, True, False, False], r"scores: .*1 of 4 are not: nan at \[1\]"),
        ([1.0, np.inf, 0.0, 1.0], [True, True, False, False], "inf"),
        ([1.0, 2.0, 0.0, 1.0], [True] * 4, "at least 2 members and 2 non-members, but got 4 and 0"),
        ([1.0, 2.0, 0.0], [True, True, False], "but got 2 and 1"),
        ([1.0, 2.0, 0.0], [1, 1, 0], "expected bool"),
        ([1.0, 2.0, 0.0], [True, False], r"expected shape \(3\)"),
        ([[1.0, 2.0]], [True, False], r"scores: expected shape \(n\)"),
        ([], [], "none of it 0"),
    ],
)
def test_bad_input_is_named(scores, is_member, says):
    with pytest.raises(InputError, match=says):
        metrics.evaluate(np.array(scores), np.array(is_member))
    with pytest.raises(InputError):
        metrics.compare(np.array(scores), np.array(scores), np.array(is_member))


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"fprs": (0.0,)}, "rates in"), ({"n_resamples": 10}, "at least 100"), ({"seed": -1}, "seed of at least 0")],
)
def test_settings_out_of_range_are_named(settings, says):
    with pytest.raises(UserError, match=says):
        metrics.evaluate(*normals(10, 0.0), **settings)


def test_figure_is_the_same_again_or_refused():
    found = metrics.evaluate(*normals(40, 1.0), **QUICK)
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(UserError, match="matplotlib"):
            draw_roc({"ours": found})
        return
    assert draw_roc({"ours": found}) == draw_roc({"ours": found})
    with pytest.raises(UserError, match="nothing to draw"):
        draw_roc({})
