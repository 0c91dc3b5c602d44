"""The shadow-model attack of Shokri et al. (2017): a classifier that learns from shadows how members are answered.

What a model answers becomes features: the largest log-probabilities in descending order, entropy, and of the label
log p_y, phi and whether it is the answer; so one classifier serves all classes, or each has its own, as in the paper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from sklearn.base import clone

from cloister.attacks import metrics
from cloister.attacks.arrays import Bools, Floats, Labels, labels_below, logits_of
from cloister.attacks.metrics import Estimate
from cloister.attacks.shadows import Shadow
from cloister.attacks.signals import log_probabilities
from cloister.errors import InputError, UserError

__all__ = ["AttackModel", "ShadowClassifier", "fit"]

Status = Literal["trained", "collapsed", "did-not-train", "nothing-to-learn"]

#: Log-probabilities that are features; more only tell how improbable classes rank.
_LARGEST = 10
#: exp of it is the smallest number.
_LEAST_LOG = -745.0
#: Rows of each kind that a class needs for a classifier of its own.
_LEAST_ROWS = 20
#: Every so many places of a shadow are held out.
_HELD_OUT = 5
_SAME = 1e-6
_RESAMPLES = 200


class AttackModel(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an attack model has learnt something: without that, its scores on a victim say nothing.

    Attributes:
        status: `trained`; `collapsed`: all held-out rows get the same score; `did-not-train`: it cannot tell held-out
            members from others, but a threshold on phi can; `nothing-to-learn`: neither can.
        n_rows: answers that it was fitted on.
        n_held_out: answers that it was not fitted on.
        fit_auc: on the rows that it was fitted on.
        held_out_auc: on the others.
        phi_auc: on the others, of a threshold on phi alone.
        warnings: what makes it less than it could be.
    """

    status: Status
    n_rows: int
    n_held_out: int
    fit_auc: float
    held_out_auc: Estimate
    phi_auc: Estimate
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ShadowClassifier:
    """A fitted attack.

    Attributes:
        n_classes: K of the shadows.
        overall: the classifier of all classes.
        by_class: those of single classes; empty if there is one for all.
        report: whether it trained.
    """

    n_classes: int
    overall: Any
    by_class: dict[int, Any]
    report: AttackModel

    def score(self, logits: npt.ArrayLike, labels: npt.ArrayLike) -> Floats:
        """The probability of having been a member, (N,), as the attack model sees it.

        Args:
            logits: (N, K) that the victim releases.
            labels: (N,) in [0, K).

        Raises:
            InputError: another number of classes than the shadows', or arrays that are not so.
        """
        known = logits_of(logits)
        if known.shape[1] != self.n_classes:
            raise InputError(f"logits: expected the shadows' {self.n_classes} classes, but got {known.shape[1]}")
        truth = labels_below(labels, self.n_classes, "labels", (len(known),))
        return _predict(self.overall, self.by_class, _features(known, truth), truth)


def fit(
    shadows: Sequence[Shadow], *, per_class: bool = False, classifier: Any = None, seed: int = 0
) -> ShadowClassifier:
    """Learn from shadows.

    A fifth of the places in each shadow, the same in all, is held out: a sample that shadows share is on one side.

    Args:
        shadows: at least one; all of as many classes.
        per_class: a classifier for each class with at least 20 members and 20 non-members.
        classifier: of scikit-learn, with `predict_proba`; gradient-boosted trees if omitted.
        seed: of what is held out and of the classifier that is used if none is given.

    Returns:
        The attack, with a report of whether it trained.

    Raises:
        InputError: shadows of different numbers of classes, or too few rows of a kind.
        UserError: no shadow, or a classifier that does not tell probabilities.
    """
    n_classes = _check(shadows)
    if classifier is not None and not hasattr(classifier, "predict_proba"):
        raise UserError(
            f"expected a classifier with `predict_proba`, but got {type(classifier).__name__}",
            "a support-vector machine needs `probability=True`",
        )
    used = _boosted_trees(seed) if classifier is None else classifier
    features = np.concatenate([_features(one.logits, one.labels) for one in shadows])
    labels = np.concatenate([one.labels for one in shadows])
    truth = np.concatenate([one.is_member for one in shadows])
    held = _held_out([len(one.labels) for one in shadows], seed)
    for rows, what in ((~held, "to fit"), (held, "held out")):
        _check_rows(truth[rows], what)
    overall = _fitted(used, features[~held], truth[~held])
    by_class = _fitted_by_class(used, features[~held], labels[~held], truth[~held], n_classes) if per_class else {}
    predicted = _predict(overall, by_class, features, labels)
    missing = sorted(set(range(n_classes)) - set(by_class)) if per_class else []
    report = _report(predicted, features[:, -2], truth, held, _without(missing, n_classes))
    return ShadowClassifier(n_classes=n_classes, overall=overall, by_class=by_class, report=report)


def _check(shadows: Sequence[Shadow]) -> int:
    if not shadows:
        raise UserError("shadow classifier: expected at least one shadow, but got none")
    found = sorted({one.logits.shape[1] for one in shadows})
    if len(found) > 1:
        raise InputError(f"shadow classifier: expected shadows of as many classes, but got {found}")
    return int(found[0])


def _check_rows(truth: Bools, what: str) -> None:
    n_members, n = int(truth.sum()), len(truth)
    if min(n_members, n - n_members) < 2:
        raise InputError(
            f"shadow classifier: expected at least 2 members and 2 non-members {what}, but got {n_members} and "
            f"{n - n_members}",
            "give more shadows, or such with more samples",
        )


def _boosted_trees(seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier  # takes a second to import

    return HistGradientBoostingClassifier(max_leaf_nodes=15, early_stopping=False, random_state=seed)


def _features(logits: Floats, labels: Labels) -> Floats:
    """(N, F); the last two are phi and whether the label is the answer."""
    log_p, log_other = (np.maximum(one, _LEAST_LOG) for one in log_probabilities(logits))
    rows = np.arange(len(labels))
    largest = -np.sort(-log_p, axis=1)[:, :_LARGEST]
    entropy = -(np.exp(log_p) * log_p).sum(axis=1)
    own = log_p[rows, labels]
    right = (logits.argmax(axis=1) == labels).astype(np.float64)
    return np.column_stack([largest, entropy, own, own - log_other[rows, labels], right])


def _held_out(sizes: Sequence[int], seed: int) -> Bools:
    order = np.random.default_rng(np.random.SeedSequence([seed, 2])).permutation(max(sizes))
    places = order % _HELD_OUT == 0
    return np.concatenate([places[:size] for size in sizes])


def _fitted(classifier: Any, features: Floats, truth: Bools) -> Any:
    return clone(classifier).fit(features, truth)


def _fitted_by_class(classifier: Any, features: Floats, labels: Labels, truth: Bools, n_classes: int) -> dict[int, Any]:
    found = {}
    for label in range(n_classes):
        own = labels == label
        n_members = int(truth[own].sum())
        if min(n_members, int(own.sum()) - n_members) >= _LEAST_ROWS:
            found[label] = _fitted(classifier, features[own], truth[own])
    return found


def _predict(overall: Any, by_class: dict[int, Any], features: Floats, labels: Labels) -> Floats:
    scores: Floats = np.asarray(overall.predict_proba(features)[:, 1], dtype=np.float64)
    for label, own in by_class.items():
        rows = labels == label
        if rows.any():
            scores[rows] = own.predict_proba(features[rows])[:, 1]
    return scores


def _report(predicted: Floats, phi: Floats, truth: Bools, held: Bools, warnings: tuple[str, ...]) -> AttackModel:
    quick = {"fprs": (), "n_resamples": _RESAMPLES}
    found = metrics.evaluate(predicted[held], truth[held], **quick)  # type: ignore[arg-type]
    simple = metrics.evaluate(phi[held], truth[held], **quick)  # type: ignore[arg-type]
    lost = metrics.compare(phi[held], predicted[held], truth[held], **quick).auc  # type: ignore[arg-type]
    status = _status(predicted[held], found.auc, simple.auc)
    if status == "trained" and lost.low > 0:
        warnings += (f"a threshold on phi alone does better: its AUC is {lost.value:.3f} higher",)
    return AttackModel(
        status=status,
        n_rows=int((~held).sum()),
        n_held_out=int(held.sum()),
        fit_auc=float(metrics.area(predicted[~held], truth[~held])),
        held_out_auc=found.auc,
        phi_auc=simple.auc,
        warnings=warnings,
    )


def _status(predicted: Floats, found: Estimate, simple: Estimate) -> Status:
    if np.ptp(predicted) < _SAME:
        return "collapsed"
    if found.low > 0.5:
        return "trained"
    return "did-not-train" if simple.low > 0.5 else "nothing-to-learn"


def _without(classes: Sequence[int], n_classes: int) -> tuple[str, ...]:
    if not classes:
        return ()
    return (
        f"{len(classes)} of {n_classes} classes have fewer than {_LEAST_ROWS} members or non-members to fit: "
        "the classifier of all classes serves them",
    )
