"""The shadow classifier learns from shadows, and says when it has not."""

import msgspec
import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression, Perceptron
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cloister.attacks import metrics, shadow_classifier, signals
from cloister.attacks.shadow_classifier import AttackModel
from cloister.attacks.shadows import Shadow
from cloister.errors import InputError, UserError
from tests.attacks import controls


class Blurred(ClassifierMixin, BaseEstimator):
    """Sees phi, the feature before the last, through noise."""

    def __init__(self, phi):
        self.phi = phi

    def fit(self, features, truth):
        self.classes_ = np.unique(truth)
        return self

    def predict_proba(self, features):
        noise = np.random.default_rng(0).normal(size=len(features))
        found = 1 / (1 + np.exp(-self.phi * features[:, -2] - noise))
        return np.column_stack([1 - found, found])


def shadows_of(run, n=4, shuffled=None):
    members = run.is_in[:n]
    if shuffled is not None:
        members = shuffled.permuted(members, axis=1)
    return [Shadow(logits=run.shadow_logits[at], labels=run.labels, is_member=own) for at, own in enumerate(members)]


@pytest.mark.parametrize("per_class", [False, True])
def test_attack_works_and_shuffled_members_give_nothing(run, per_class):
    attack = shadow_classifier.fit(shadows_of(run, 6), per_class=per_class)
    assert attack.report.status == "trained"
    assert attack.report.n_rows + attack.report.n_held_out == 6 * 800
    assert len(attack.by_class) == (10 if per_class else 0)
    scores = attack.score(run.logits, run.labels)
    assert metrics.evaluate(scores, run.is_member, fprs=()).auc.low > 0.57
    assert controls.holds_a_half(scores, run.is_member)
    assert msgspec.json.decode(msgspec.json.encode(attack.report), type=AttackModel) == attack.report


def test_any_classifier_will_do(run):
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    attack = shadow_classifier.fit(shadows_of(run), classifier=regression)
    assert attack.report.status == "trained"
    assert not hasattr(regression[-1], "coef_"), "what is given is not changed"


def test_what_is_held_out_was_not_learnt():
    """Members that only their own number tells: a tree learns those by heart, and the held-out rows show it."""
    rng = np.random.default_rng(0)
    shadow = Shadow(
        logits=rng.normal(size=(1000, 4)), labels=rng.integers(0, 4, 1000), is_member=rng.random(1000) < 0.5
    )
    report = shadow_classifier.fit([shadow]).report
    assert report.fit_auc > 0.9
    assert report.held_out_auc.low <= 0.5
    assert report.status == "nothing-to-learn"


def test_samples_that_shadows_share_are_on_one_side():
    """Two shadows on the same samples with the same members: what one row teaches, the other would give away."""
    rng = np.random.default_rng(0)
    logits, labels, is_member = rng.normal(size=(1000, 4)), rng.integers(0, 4, 1000), rng.random(1000) < 0.5
    twice = [Shadow(logits=logits, labels=labels, is_member=is_member)] * 2
    assert shadow_classifier.fit(twice).report.status == "nothing-to-learn"


def test_an_attack_model_that_did_not_train_is_reported(run):
    shadows = shadows_of(run)
    assert shadow_classifier.fit(shadows, classifier=DummyClassifier()).report.status == "collapsed"
    report = shadow_classifier.fit(shadows, classifier=Blurred(phi=0.0)).report
    assert report.status == "did-not-train"
    assert report.phi_auc.low > 0.5 >= report.held_out_auc.low
    report = shadow_classifier.fit(shadows_of(run, shuffled=np.random.default_rng(2))).report
    assert report.status == "nothing-to-learn"


def test_an_attack_model_that_does_worse_than_a_threshold_is_told_so(run):
    report = shadow_classifier.fit(shadows_of(run, 6), classifier=Blurred(phi=0.1)).report
    assert report.status == "trained"
    assert report.warnings[0].startswith("a threshold on phi alone does better: its AUC is 0.0")
    assert shadow_classifier.fit(shadows_of(run, 6)).report.warnings == ()


def test_a_memorised_toy_is_found_by_class():
    """Members answer sharply in class 0 and softly in class 1."""
    rng = np.random.default_rng(0)

    def shadow(n=600):
        labels, is_member = rng.integers(0, 2, n), rng.random(n) < 0.5
        logits = rng.normal(size=(n, 3)) * 0.1
        logits[np.arange(n), labels] += np.where(is_member == (labels == 0), 5.0, 1.0)
        return Shadow(logits=logits, labels=labels, is_member=is_member)

    victim = shadow()
    attack = shadow_classifier.fit([shadow(), shadow()], per_class=True)
    assert sorted(attack.by_class) == [0, 1]
    assert "1 of 3 classes" in attack.report.warnings[0]
    assert metrics.area(attack.score(victim.logits, victim.labels), victim.is_member) > 0.95
    assert metrics.area(signals.phi(victim.logits, victim.labels), victim.is_member) < 0.6


def test_the_shadows_pool_and_size_are_free(run):
    small = Shadow(logits=run.shadow_logits[1, :200], labels=run.labels[:200], is_member=run.is_in[1, :200])
    attack = shadow_classifier.fit([shadows_of(run, 1)[0], small])
    assert attack.report.n_rows + attack.report.n_held_out == 1000


def test_bad_input_is_named(run):
    with pytest.raises(UserError, match="at least one shadow"):
        shadow_classifier.fit([])
    with pytest.raises(UserError, match=r"`predict_proba`, but got Perceptron"):
        shadow_classifier.fit(shadows_of(run), classifier=Perceptron())
    few = Shadow(logits=np.eye(4), labels=np.arange(4), is_member=np.array([True, True, False, False]))
    with pytest.raises(InputError, match="at least 2 members and 2 non-members to fit, but got 2 and 1"):
        shadow_classifier.fit([few])
    with pytest.raises(InputError, match=r"as many classes, but got \[4, 10\]"):
        shadow_classifier.fit([few, *shadows_of(run)])
    with pytest.raises(InputError, match="the shadows' 10 classes, but got 4"):
        shadow_classifier.fit(shadows_of(run)).score(np.eye(4), np.arange(4))
