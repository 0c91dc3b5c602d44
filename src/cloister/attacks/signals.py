"""Signals of a model's logits, in float64 and exact where probabilities round to 0 or 1.

A loss of 1e-30 is another one than 1e-40, though both probabilities are 1: attacks at a low false-positive rate live on
such differences. So everything is made from log p and log (1 - p), and for the largest logit these are made from the
others' logits, never from a difference with 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from cloister.attacks.arrays import Bools, Floats, Labels, labels_below, logits_of

__all__ = [
    "SIGNALS",
    "Signal",
    "confidence",
    "correctness",
    "entropy",
    "log_probabilities",
    "loss",
    "modified_entropy",
    "phi",
    "score",
]

Signal = Literal["loss", "confidence", "entropy", "modified-entropy", "correctness", "phi"]
_Logs = tuple[Floats, Floats]


def loss(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Floats:
    """Cross-entropy.

    Args:
        logits: (N, K), K at least 2, finite.
        labels: (N,) in [0, K).

    Returns:
        (N,) in nats, at least 0.

    Raises:
        InputError: another shape or dtype, labels that are no classes, NaN or infinity.
    """
    (log_p, _), known = _logs(logits, labels)
    return -_at(log_p, known)


def confidence(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Floats:
    """Probability of the label, (N,) in [0, 1]; arguments as for `loss`."""
    probability: Floats = np.exp(-loss(logits, labels))
    return probability


def phi(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Floats:
    """The scaled logit log p_y - log (1 - p_y) of Carlini et al. (2022), (N,); arguments as for `loss`."""
    (log_p, log_other), known = _logs(logits, labels)
    return _at(log_p, known) - _at(log_other, known)


def entropy(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Floats:
    """Entropy of the answer, (N,) in nats, in [0, log K]; the labels do not matter. Arguments as for `loss`."""
    (log_p, _), _ = _logs(logits, labels)
    return -_sum_of_products(np.exp(log_p), log_p)


def modified_entropy(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Floats:
    """Entropy that knows the label, (N,) in nats: 0 if the answer is the label for sure, large if it is another.

    Song and Mittal (2021), equation 9: -(1 - p_y) log p_y - sum of p_k log (1 - p_k) over the other classes k.
    Arguments as for `loss`.
    """
    (log_p, log_other), known = _logs(logits, labels)
    p, others = np.exp(log_p), log_other.copy()
    rows = np.arange(len(known))
    p[rows, known], others[rows, known] = np.exp(log_other[rows, known]), log_p[rows, known]
    return -_sum_of_products(p, others)


def correctness(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Floats:
    """1 where the first of the largest logits is the label's, else 0, (N,); arguments as for `loss`."""
    numbers = logits_of(logits)
    known = labels_below(labels, numbers.shape[1], "labels", (len(numbers),))
    right: Bools = numbers.argmax(axis=1) == known
    return right.astype(np.float64)


def _less(signal: Callable[[npt.ArrayLike, npt.ArrayLike], Floats]) -> Callable[[npt.ArrayLike, npt.ArrayLike], Floats]:
    return lambda logits, labels: -signal(logits, labels)


#: Each signal as a score: the larger, the more likely a member.
SIGNALS: dict[Signal, Callable[[npt.ArrayLike, npt.ArrayLike], Floats]] = {
    "loss": _less(loss),
    "confidence": confidence,
    "entropy": _less(entropy),
    "modified-entropy": _less(modified_entropy),
    "correctness": correctness,
    "phi": phi,
}


def score(signal: Signal, logits: npt.ArrayLike, labels: npt.ArrayLike) -> Floats:
    """A signal as a score, (N,): the larger, the more likely a member. Arguments as for `loss`."""
    return SIGNALS[signal](logits, labels)


def _logs(logits: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[_Logs, Labels]:
    """Log p and log (1 - p), each (N, K), and the labels."""
    numbers = logits_of(logits)
    return log_probabilities(numbers), labels_below(labels, numbers.shape[1], "labels", (len(numbers),))


def log_probabilities(logits: Floats) -> _Logs:
    """Log p and log (1 - p), each (N, K), of checked logits."""
    rows, top = np.arange(len(logits)), logits.argmax(axis=1)
    below = logits - logits.max(axis=1, keepdims=True)
    log_p = special.log_softmax(below, axis=1)
    is_top: Bools = np.zeros(logits.shape, dtype=np.bool_)
    is_top[rows, top] = True
    margin = -special.logsumexp(np.where(is_top, -np.inf, below), axis=1)
    log_p[rows, top] = -np.logaddexp(0, -margin)
    # At most 1/2 for all but the largest, where this is exact.
    log_other = np.log1p(-np.exp(np.where(is_top, -np.inf, log_p)))
    log_other[rows, top] = -np.logaddexp(0, margin)
    return log_p, log_other


def _at(values: Floats, labels: Labels) -> Floats:
    picked: Floats = values[np.arange(len(labels)), labels]
    return picked


def _sum_of_products(p: Floats, logs: Floats) -> Floats:
    """Of p log q over the classes, with 0 log 0 = 0."""
    total: Floats = np.where(p > 0, p * logs, 0.0).sum(axis=1)
    return total
