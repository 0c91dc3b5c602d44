"""One threshold on one signal, from a shadow: for all samples (Yeom et al. 2018) or by class (Song and Mittal 2021)."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from cloister.attacks import signals
from cloister.attacks.arrays import Bools, Floats, logits_of
from cloister.attacks.metrics import best_threshold
from cloister.attacks.shadows import Shadow
from cloister.attacks.signals import Signal
from cloister.errors import InputError

__all__ = ["Thresholds", "choose"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Thresholds:
    """From which score on a sample is called a member.

    Attributes:
        signal: whose scores they are of.
        overall: for all samples.
        by_class: (K,) for each class.
        without: classes of which the shadow has no member or no non-member: theirs is `overall`.
    """

    signal: Signal
    overall: float
    by_class: Floats
    without: tuple[int, ...]

    def score(self, logits: npt.ArrayLike, labels: npt.ArrayLike, *, class_wise: bool) -> Floats:
        """How far the victim's scores are above the thresholds.

        Args:
            logits: (N, K) of the victim.
            labels: (N,) in [0, K).
            class_wise: above the threshold of a sample's class, or above that for all, which keeps the signal's order.

        Returns:
            (N,); from 0 on a sample is called a member.

        Raises:
            InputError: another number of classes than the shadow's, or arrays that are not as `signals` needs them.
        """
        known = logits_of(logits)
        if known.shape[1] != len(self.by_class):
            raise InputError(f"logits: expected the shadow's {len(self.by_class)} classes, but got {known.shape[1]}")
        found = signals.score(self.signal, known, labels)
        return found - (self.by_class[np.asarray(labels)] if class_wise else self.overall)


def choose(signal: Signal, shadow: Shadow) -> Thresholds:
    """The thresholds with the best balanced accuracy on a shadow.

    Args:
        signal: see `signals`.
        shadow: whose members are known.
    """
    scores = signals.score(signal, shadow.logits, shadow.labels)
    overall = _threshold(scores, shadow.is_member)
    n_classes = shadow.logits.shape[1]
    by_class, without = np.full(n_classes, overall), []
    for label in range(n_classes):
        own = shadow.labels == label
        if len(set(shadow.is_member[own].tolist())) == 2:
            by_class[label] = _threshold(scores[own], shadow.is_member[own])
        else:
            without.append(label)
    return Thresholds(signal=signal, overall=overall, by_class=by_class, without=tuple(without))


def _threshold(scores: Floats, is_member: Bools) -> float:
    """A finite one: if calling nobody a member is best, just above all scores."""
    return min(best_threshold(scores, is_member), float(np.nextafter(scores.max(), np.inf)))
