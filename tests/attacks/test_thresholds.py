"""Thresholds are the best of a shadow's, for all samples or by class, and never the victim's own."""

import numpy as np
import pytest

from cloister.attacks import metrics, signals, thresholds
from cloister.attacks.shadows import Shadow
from cloister.errors import InputError
from tests.attacks import controls

SIGNALS = ["loss", "confidence", "entropy", "modified-entropy"]


def shadow_of(run, at=0):
    return Shadow(logits=run.shadow_logits[at], labels=run.labels, is_member=run.is_in[at])


@pytest.mark.parametrize("signal", SIGNALS)
def test_no_threshold_of_a_loop_is_better(run, signal):
    shadow = shadow_of(run)
    found = thresholds.choose(signal, shadow)
    scores = signals.score(signal, shadow.logits, shadow.labels)

    def ours(rows, threshold):
        calls, truth = scores[rows] >= threshold, shadow.is_member[rows]
        return (calls[truth].mean() + 1 - calls[~truth].mean()) / 2

    def slow(rows):
        return max(ours(rows, one) for one in scores[rows])

    everything = np.ones(len(scores), dtype=bool)
    assert ours(everything, found.overall) == pytest.approx(slow(everything))
    for label, threshold in enumerate(found.by_class):
        rows = shadow.labels == label
        assert ours(rows, threshold) == pytest.approx(slow(rows))


@pytest.mark.parametrize("signal", SIGNALS)
def test_attacks_work_and_shuffled_members_give_nothing(run, signal):
    found = thresholds.choose(signal, shadow_of(run))
    for class_wise in (False, True):
        scores = found.score(run.logits, run.labels, class_wise=class_wise)
        assert metrics.judge(scores >= 0, run.is_member).low > 0.52
        assert controls.holds_a_half(scores >= 0, run.is_member, decided=True)
    plain = signals.score(signal, run.logits, run.labels)
    alike = found.score(run.logits, run.labels, class_wise=False)
    assert metrics.area(alike, run.is_member) == pytest.approx(metrics.area(plain, run.is_member), abs=1e-3)


def test_thresholds_by_class_find_what_one_threshold_cannot():
    """A memorised toy: members of class 0 have a loss of 1 or less, of class 1 of 5 or less."""
    rng = np.random.default_rng(0)
    labels, is_member = np.repeat([0, 1], 200), np.tile([True, False], 200)
    margin = np.where(labels == 0, 0.0, -5.0) + 2 * is_member + rng.uniform(0, 0.5, 400)
    logits = np.zeros((400, 2))
    logits[np.arange(400), labels] = margin
    found = thresholds.choose("loss", Shadow(logits=logits[:200:], labels=labels[:200], is_member=is_member[:200]))
    assert found.without == (1,)
    assert found.by_class[1] == found.overall
    found = thresholds.choose("loss", Shadow(logits=logits, labels=labels, is_member=is_member))
    by_class = found.score(logits, labels, class_wise=True)
    assert metrics.area(by_class, is_member) > 0.95
    assert ((by_class >= 0) == is_member).all()
    assert ((found.score(logits, labels, class_wise=False) >= 0) != is_member).any()


def test_a_signal_that_is_the_wrong_way_round_calls_nobody_a_member():
    logits = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 5.0], [0.0, 6.0]])
    shadow = Shadow(logits=logits, labels=np.ones(4, int), is_member=np.array([True, True, False, False]))
    found = thresholds.choose("loss", shadow)
    assert np.isfinite(found.overall)
    assert (found.score(logits, np.ones(4, int), class_wise=True) < 0).all()


def test_bad_input_is_named(run):
    found = thresholds.choose("loss", shadow_of(run))
    with pytest.raises(InputError, match="the shadow's 10 classes, but got 3"):
        found.score(np.zeros((2, 3)), [0, 1], class_wise=True)
    with pytest.raises(InputError, match=r"labels in \[0, 10\)"):
        found.score(np.zeros((2, 10)), [0, 10], class_wise=True)
    for field, value, says in [
        ("is_member", np.ones(800, bool), "shadow is_member: expected at least 2 members and 2 non-members"),
        ("labels", run.labels[:-1], r"shadow labels: expected shape \(800\)"),
        ("logits", np.full((800, 10), np.nan), "shadow logits: expected finite"),
    ]:
        arrays = {"logits": run.logits, "labels": run.labels, "is_member": run.is_member, field: value}
        with pytest.raises(InputError, match=says):
            Shadow(**arrays)
