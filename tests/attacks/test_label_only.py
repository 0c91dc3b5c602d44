"""The gap attack is exact; the attack on released labels is above it, by what the shadows know."""

import numpy as np
import pytest

from cloister.attacks import label_only, metrics
from cloister.errors import InputError
from tests.attacks import controls


def test_gap_attack_is_its_formula(run):
    released = run.logits.argmax(axis=1)
    right = released == run.labels
    wanted = (1 + right[run.is_member].mean() - right[~run.is_member].mean()) / 2
    assert label_only.gap_accuracy(released, run.labels, run.is_member) == wanted
    scores = label_only.gap(released, run.labels)
    assert metrics.judge(scores == 1, run.is_member).value == pytest.approx(wanted, abs=1e-12)
    assert metrics.area(scores, run.is_member) == pytest.approx(wanted, abs=1e-12), "ties count one half"
    assert metrics.evaluate(scores, run.is_member, fprs=()).best_balanced_accuracy.value == pytest.approx(wanted)


def test_unlikely_labels_are_counted_as_a_loop_does(run):
    released, shadows = run.logits.argmax(axis=1), run.shadow_logits.argmax(axis=2)
    found = label_only.unlikely(released, run.labels, shadows, run.is_in)
    for at in range(0, 800, 7):
        outside = shadows[~run.is_in[:, at], at]
        q = ((outside == released[at]).sum() + 1) / (len(outside) + 2)
        assert found[at] == pytest.approx(-np.log(q) if released[at] == run.labels[at] else np.log(q))


def test_shadows_add_to_the_gap_attack_and_shuffled_members_give_nothing(run):
    released, shadows = run.logits.argmax(axis=1), run.shadow_logits.argmax(axis=2)
    scores = label_only.unlikely(released, run.labels, shadows, run.is_in)
    gap = label_only.gap(released, run.labels)
    assert metrics.compare(scores, gap, run.is_member).auc.low > 0.05
    for one in (scores, gap):
        assert controls.holds_a_half(one, run.is_member)


def test_a_memorised_toy_is_found():
    """Labels that only those who saw them can know."""
    rng = np.random.default_rng(0)
    labels, is_member = rng.integers(0, 10, 200), rng.permutation(200) < 100
    released = np.where(is_member, labels, rng.integers(0, 10, 200))
    shadows = rng.integers(0, 10, (8, 200))
    scores = label_only.unlikely(released, labels, shadows, np.zeros((8, 200), bool))
    assert metrics.area(scores, is_member) > 0.9
    assert label_only.gap_accuracy(released, labels, is_member) > 0.9


def test_bad_input_is_named():
    ok = np.zeros(4, int)
    for arguments, says in [
        ((ok, ok, np.zeros((2, 3), int), np.zeros((2, 4), bool)), r"shadow_released: expected shape \(n, 4\)"),
        ((ok, ok, np.zeros((2, 4), int), np.ones((2, 4), bool)), "a shadow with each sample out, but 4 of 4 have none"),
        ((ok, ok[:2], np.zeros((2, 4), int), np.zeros((2, 4), bool)), r"labels: expected shape \(4\)"),
        ((ok - 1, ok, np.zeros((2, 4), int), np.zeros((2, 4), bool)), "released: expected labels"),
        ((ok + 0.5, ok, np.zeros((2, 4), int), np.zeros((2, 4), bool)), "released: expected integers"),
    ]:
        with pytest.raises(InputError, match=says):
            label_only.unlikely(*arguments)
    with pytest.raises(InputError, match="4 and 0"):
        label_only.gap_accuracy(ok, ok, np.ones(4, bool))
