"""Signals are what their formulas say, in 60 digits, also where probabilities round to 0 or 1."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cloister.attacks import signals
from cloister.errors import InputError


def cases(magnitude):
    """Logits of 2 to 5 classes, with ties, and labels."""
    values = st.one_of(st.floats(-magnitude, magnitude), st.sampled_from([0.0, 1.0, -1.0, magnitude, -magnitude]))
    shape = st.tuples(st.integers(1, 6), st.integers(2, 5))
    logits = shape.flatmap(lambda one: arrays(np.float64, one, elements=values))
    return logits.flatmap(
        lambda one: st.tuples(st.just(one), arrays(np.int64, len(one), elements=st.integers(0, one.shape[1] - 1)))
    )


def exact(row, label):
    """Loss, entropy, modified entropy and phi of one sample, slowly."""
    with localcontext() as context:
        context.prec = 200
        powers = [(Decimal(float(value)) - Decimal(float(max(row)))).exp() for value in row]
        p = [power / sum(powers) for power in powers]
        other = [sum(one for k, one in enumerate(powers) if k != at) / sum(powers) for at in range(len(powers))]
        entropy = -sum(one * one.ln() for one in p)
        modified = -other[label] * p[label].ln()
        modified -= sum(p[k] * other[k].ln() for k in range(len(p)) if k != label)
        return [float(one) for one in (-p[label].ln(), entropy, modified, p[label].ln() - other[label].ln())]


@settings(deadline=None)
@given(cases(100.0))
def test_signals_are_the_formulas(case):
    logits, labels = case
    found = [function(logits, labels) for function in (signals.loss, signals.entropy, signals.modified_entropy)]
    found.append(signals.phi(logits, labels))
    wanted = [exact(row, label) for row, label in zip(logits, labels, strict=True)]
    # Logits are sums of differences of 100 or so: that much of the last digits is theirs.
    np.testing.assert_allclose(np.transpose(found), wanted, rtol=1e-12, atol=1e-13)


@settings(deadline=None)
@given(cases(1e300))
def test_huge_logits_give_numbers_in_range(case):
    logits, labels = case
    n_classes = logits.shape[1]
    for name in signals.SIGNALS:
        found = signals.score(name, logits, labels)
        assert found.dtype == np.float64, name
        assert found.shape == labels.shape, name
        assert np.isfinite(found).all(), name
    assert (signals.loss(logits, labels) >= 0).all()
    assert (signals.modified_entropy(logits, labels) >= 0).all()
    entropy = signals.entropy(logits, labels)
    assert ((entropy >= 0) & (entropy <= np.log(n_classes) * (1 + 1e-12))).all()
    confidence = signals.confidence(logits, labels)
    assert ((confidence >= 0) & (confidence <= 1)).all()


@settings(deadline=None)
@given(cases(30.0), st.floats(-30, 30))
def test_a_constant_added_to_all_logits_changes_nothing(case, constant):
    logits, labels = case
    for name in signals.SIGNALS.keys() - {"correctness"}:
        before, after = signals.score(name, logits, labels), signals.score(name, logits + constant, labels)
        np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-12, err_msg=name)


def test_confident_answers_stay_apart():
    logits = np.array([[0.0, 40.0], [0.0, 50.0], [0.0, 600.0]])
    losses = signals.loss(logits, np.array([1, 1, 1]))
    np.testing.assert_allclose(losses, np.exp([-40.0, -50.0, -600.0]), rtol=1e-12)
    assert signals.phi(logits, np.array([1, 1, 1])).tolist() == [40.0, 50.0, 600.0]


def test_scores_are_larger_for_what_was_learnt():
    logits, labels = np.array([[5.0, 0.0, 0.0], [0.1, 0.2, 0.0]]), np.array([0, 0])
    for name in signals.SIGNALS:
        learnt, other = signals.score(name, logits, labels)
        assert learnt > other, name


def test_entropy_does_not_know_the_label_and_modified_entropy_does():
    logits = np.array([[50.0, 0.0, 0.0]] * 2)
    right, wrong = signals.entropy(logits, np.array([0, 1]))
    assert right == wrong
    right, wrong = signals.modified_entropy(logits, np.array([0, 1]))
    assert right < 1e-12
    assert wrong > 90


def test_of_equal_logits_the_first_is_the_answer():
    assert signals.correctness(np.zeros((2, 3)), np.array([0, 1])).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("logits", "labels", "says"),
    [
        (np.zeros((2, 1)), [0, 0], "at least 2 classes"),
        (np.zeros(3), [0, 0, 0], r"logits: expected shape \(n, n\)"),
        (np.zeros((0, 3)), [], "none of it 0"),
        (np.zeros((2, 3)), [0, 3], r"labels in \[0, 3\), but got \[0, 3\]"),
        (np.zeros((2, 3)), [-1, 0], r"labels in \[0, 3\)"),
        (np.zeros((2, 3)), [0.0, 1.0], "expected integers, but got float64"),
        (np.zeros((2, 3)), [0], r"labels: expected shape \(2\)"),
        (np.array([[0.0, np.nan]]), [0], r"1 of 2 are not: nan at \[0, 1\]"),
        (np.array([[0.0, -np.inf]]), [0], "logits: expected finite"),
        (np.array([["a", "b"]]), [0], "real numbers"),
        (np.zeros((1, 2), dtype=np.complex128), [0], "real numbers"),
    ],
)
def test_bad_input_is_named(logits, labels, says):
    for name in signals.SIGNALS:
        with pytest.raises(InputError, match=says):
            signals.score(name, logits, np.array(labels, dtype=np.int64 if not labels else None))
