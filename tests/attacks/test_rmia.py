"""RMIA is what its definition says, one sample and one of the population at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attacks import metrics, rmia, signals
from cloister.errors import InputError, UserError
from tests.attacks import controls


def slow(p, reference_p, is_in, population_p, reference_population_p, *, a=None, gamma=1.0):
    """Algorithms 1 (`a` is None: online) and 2 of the paper."""
    ratios = []
    for z, value in enumerate(population_p):
        mean = np.mean(reference_population_p[:, z])
        ratios.append(value / (mean if a is None else ((1 + a) * mean + 1 - a) / 2))
    scores = []
    for x, value in enumerate(p):
        out = np.mean(reference_p[~is_in[:, x], x])
        usual = (np.mean(reference_p[is_in[:, x], x]) + out) / 2 if a is None else ((1 + a) * out + 1 - a) / 2
        scores.append(np.mean([value / usual > gamma * ratio for ratio in ratios]))
    return np.array(scores)


@pytest.fixture(scope="module")
def confidences(run):
    of = signals.confidence
    return (
        of(run.logits, run.labels),
        np.array([of(one, run.labels) for one in run.shadow_logits]),
        run.is_in,
        of(run.population_logits, run.population_labels),
        np.array([of(one, run.population_labels) for one in run.shadow_population_logits]),
    )


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_scores_are_the_definitions(confidences, gamma):
    for a in (0.0, 0.3, 1.0):
        ours = rmia.offline(*confidences, a=a, gamma=gamma)
        # Means of a handful of numbers may differ in the last digit, and a ratio then changes sides.
        np.testing.assert_allclose(ours, slow(*confidences, a=a, gamma=gamma), atol=2 / 800)
    np.testing.assert_allclose(rmia.online(*confidences, gamma=gamma), slow(*confidences, gamma=gamma), atol=2 / 800)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_scores_are_the_definitions_to_the_bit_with_ties(seed):
    """Eighths, and two references, so that every mean is exact and many ratios are equal."""
    rng = np.random.default_rng(seed)
    p, population_p = rng.integers(1, 9, 12) / 8, rng.integers(1, 9, 15) / 8
    reference_p, reference_population_p = rng.integers(1, 9, (2, 12)) / 8, rng.integers(1, 9, (2, 15)) / 8
    is_in = np.array([rng.random(12) < 0.5] * 2)
    is_in[1] = ~is_in[0]
    case = p, reference_p, is_in, population_p, reference_population_p
    np.testing.assert_array_equal(rmia.offline(*case, a=0.5), slow(*case, a=0.5))
    np.testing.assert_array_equal(rmia.online(*case, gamma=2.0), slow(*case, gamma=2.0))


def test_references_that_have_seen_a_sample_do_not_matter_offline(confidences):
    p, reference_p, is_in, *population = confidences
    other = np.where(is_in, 0.123, reference_p)
    np.testing.assert_array_equal(
        rmia.offline(p, other, is_in, *population), rmia.offline(p, reference_p, is_in, *population)
    )


def test_attacks_work_and_shuffled_members_give_nothing(run, confidences):
    for scores in (rmia.offline(*confidences), rmia.online(*confidences)):
        assert metrics.evaluate(scores, run.is_member, fprs=()).auc.low > 0.7
        assert controls.holds_a_half(scores, run.is_member)


def test_a_memorised_toy_is_found():
    rng = np.random.default_rng(1)
    is_member, usual = rng.permutation(200) < 100, rng.uniform(0.05, 0.5, 200)
    references = np.broadcast_to(usual, (4, 200)) * rng.uniform(0.8, 1.2, (4, 200))
    p, z = np.where(is_member, 0.95, usual), rng.uniform(0.05, 0.5, 300)
    scores = rmia.offline(p, references, np.zeros((4, 200), bool), z, np.broadcast_to(z, (4, 300)))
    assert metrics.evaluate(scores, is_member, fprs=()).auc.value > 0.95


def test_a_probability_of_zero_everywhere_is_a_number():
    found = rmia.offline(
        np.array([0.0, 1.0]), np.zeros((1, 2)), np.zeros((1, 2), bool), np.array([0.0]), np.zeros((1, 1)), a=1
    )
    assert found.tolist() == [0.0, 1.0]


def test_bad_input_is_named():
    case = [np.full(3, 0.5), np.full((2, 3), 0.5), np.zeros((2, 3), bool), np.full(4, 0.5), np.full((2, 4), 0.5)]
    rmia.offline(*case)
    for at, value, says in [
        (0, np.full(3, 1.5), r"p: expected probabilities in \[0, 1\], but got values in \[1.5, 1.5\]"),
        (0, np.array([0.5, np.nan, 0.5]), "p: .*nan"),
        (0, np.full(2, 0.5), r"p: expected shape \(3\)"),
        (1, np.full((2, 3), -1.0), "reference_p: expected probabilities"),
        (2, np.ones((2, 3), bool), "a reference with each sample out, but 3 of 3 have none"),
        (2, np.zeros((3, 2), bool), r"is_in: expected shape \(2, 3\)"),
        (3, np.full(5, 0.5), r"population_p: expected shape \(4\)"),
        (4, np.full((3, 4), 0.5), r"reference_population_p: expected shape \(2, n\)"),
    ]:
        with pytest.raises(InputError, match=says):
            rmia.offline(*case[:at], value, *case[at + 1 :])
    with pytest.raises(InputError, match="each sample in"):
        rmia.online(*case)
    with pytest.raises(UserError, match="`a` in"):
        rmia.offline(*case, a=1.5)
    with pytest.raises(UserError, match="positive `gamma`"):
        rmia.offline(*case, gamma=0.0)
