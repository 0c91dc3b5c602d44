"""LiRA is the paper's formula, and refuses what it cannot be computed from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cloister.attacks import lira, metrics, signals
from cloister.errors import InputError
from tests.attacks import controls


def slow_online(phi, shadow_phi, is_in):
    """Algorithm 1, a sample at a time."""
    scores = []
    for at, value in enumerate(phi):
        inside, outside = shadow_phi[is_in[:, at], at], shadow_phi[~is_in[:, at], at]
        score = stats.norm.logpdf(value, np.median(inside), np.std(inside) + 1e-30)
        scores.append(score - stats.norm.logpdf(value, np.median(outside), np.std(outside) + 1e-30))
    return np.array(scores)


def slow_fixed(phi, shadow_phi, is_in):
    """The same with one variance of the residuals of all samples, for each kind."""
    spreads, centres = [], []
    for chosen in (is_in, ~is_in):
        kept = [shadow_phi[chosen[:, at], at] for at in range(len(phi))]
        centres.append(np.array([np.median(one) for one in kept]))
        residuals = np.concatenate([one - centre for one, centre in zip(kept, centres[-1], strict=True)])
        spreads.append(np.sqrt(np.mean(residuals**2)))
    return stats.norm.logpdf(phi, centres[0], spreads[0]) - stats.norm.logpdf(phi, centres[1], spreads[1])


def slow_offline(phi, shadow_phi, is_in):
    """Log of the share of a normal distribution below the victim's value."""
    outside = [shadow_phi[~is_in[:, at], at] for at in range(len(phi))]
    return np.array(
        [stats.norm.logcdf(value, np.median(one), np.std(one)) for value, one in zip(phi, outside, strict=True)]
    )


@pytest.fixture(scope="module")
def phis(run):
    shadows = np.array([signals.phi(one, run.labels) for one in run.shadow_logits])
    return signals.phi(run.logits, run.labels), shadows, run.is_in


def test_online_is_the_published_formula(phis):
    np.testing.assert_allclose(lira.online(*phis), slow_online(*phis), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(lira.online(*phis, fixed_variance=True), slow_fixed(*phis), rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(4, 9))
def test_online_is_the_published_formula_with_uneven_numbers_of_shadows(seed, n_models):
    rng = np.random.default_rng(seed)
    is_in = rng.random((n_models, 7)) < 0.5
    is_in[:2], is_in[2:4] = True, False
    phi, shadows = rng.normal(size=7), rng.normal(size=(n_models, 7)) * 10
    np.testing.assert_allclose(lira.online(phi, shadows, is_in), slow_online(phi, shadows, is_in), rtol=1e-9)
    np.testing.assert_allclose(
        lira.online(phi, shadows, is_in, fixed_variance=True), slow_fixed(phi, shadows, is_in), rtol=1e-9, atol=1e-9
    )


def test_offline_has_the_order_of_the_papers_probability_and_does_not_saturate(phis):
    found = lira.offline(*phis)
    # Where the logarithm of the probability still tells them apart.
    clear = found < 8
    np.testing.assert_array_equal(np.argsort(found[clear]), np.argsort(slow_offline(*phis)[clear]))
    sure = lira.offline(np.array([50.0, 60.0]), np.array([[0.0, 0.0], [1.0, 1.0]]), np.zeros((2, 2), dtype=bool))
    assert sure[0] < sure[1]
    low, high = lira.offline(np.array([-50.0, 50.0]), np.array([[0.0, 0.0], [1.0, 1.0]]), np.zeros((2, 2), dtype=bool))
    assert low < 0 < high, "an unusually low confidence is no sign of a member"


def test_fixed_variance_is_of_residuals_and_not_of_how_samples_differ():
    """Two samples whose centres are far apart, all residuals 1."""
    shadows, is_in = np.array([[99.0, -101.0], [101.0, -99.0]]), np.zeros((2, 2), dtype=bool)
    assert lira.offline(np.array([102.0, -98.0]), shadows, is_in, fixed_variance=True).tolist() == [2.0, 2.0]


def test_attacks_work_and_shuffled_members_give_nothing(run, phis):
    for attack in (lira.online, lira.offline):
        for fixed_variance in (False, True):
            scores = attack(*phis, fixed_variance=fixed_variance)
            assert metrics.evaluate(scores, run.is_member, fprs=()).auc.low > 0.65
            assert controls.holds_a_half(scores, run.is_member)
    simple = metrics.evaluate(signals.score("loss", run.logits, run.labels), run.is_member)
    best = metrics.evaluate(lira.online(*phis, fixed_variance=True), run.is_member)
    assert best.auc.low > simple.auc.value


def test_an_attack_that_ignores_a_filter_sees_protection_that_is_not_there(run, phis):
    _, plain, is_in = phis
    soft = signals.phi(run.logits / 10, run.labels)
    softened = np.array([signals.phi(one / 10, run.labels) for one in run.shadow_logits])
    adaptive = lira.online(soft, softened, is_in, fixed_variance=True)
    naive = lira.online(soft, plain, is_in, fixed_variance=True)
    assert metrics.area(naive, run.is_member) < 0.6 < 0.7 < metrics.area(adaptive, run.is_member)
    assert metrics.compare(adaptive, naive, run.is_member, fprs=()).auc.low > 0.1


def test_a_memorised_toy_is_found():
    rng = np.random.default_rng(1)
    is_in, is_member = rng.random((16, 200)) < 0.5, rng.permutation(200) < 100
    is_in[::2] = ~is_in[1::2]
    hardness = rng.normal(size=200) * 5
    shadows = hardness + 4 * is_in + rng.normal(size=(16, 200))
    phi = hardness + 4 * is_member + rng.normal(size=200)
    for attack in (lira.online, lira.offline):
        assert metrics.evaluate(attack(phi, shadows, is_in), is_member, fprs=()).auc.value > 0.95


@pytest.mark.parametrize("attack", [lira.online, lira.offline])
def test_bad_input_is_named(attack):
    phi, shadows = np.zeros(3), np.arange(12.0).reshape(4, 3)
    is_in = np.array([[True] * 3, [True] * 3, [False] * 3, [False] * 3])
    attack(phi, shadows, is_in)
    with pytest.raises(InputError, match=r"is_in: expected shape \(4, 3\)"):
        attack(phi, shadows, is_in[:2])
    with pytest.raises(InputError, match=r"shadow_phi: expected shape \(n, 3\)"):
        attack(phi, shadows.T, is_in)
    with pytest.raises(InputError, match="expected bool"):
        attack(phi, shadows, is_in.astype(int))
    with pytest.raises(InputError, match=r"phi: .*nan"):
        attack(np.array([0.0, np.nan, 0.0]), shadows, is_in)
    one_out = is_in.copy()
    one_out[2, 1] = True
    with pytest.raises(InputError, match="at least 2 shadows with each sample out, but sample 1 has 1"):
        attack(phi, shadows, one_out)
    attack(phi, shadows, one_out, fixed_variance=True)
    with pytest.raises(InputError, match="at least 1 shadows with each sample out, but sample 0 has 0"):
        attack(phi, shadows, np.ones_like(is_in), fixed_variance=True)
    with pytest.raises(InputError, match="two shadows with the same sample"):
        attack(phi, shadows[1:3], is_in[1:3], fixed_variance=True)
