"""Attacks on a release of labels only: the floor of every release that answers with a class."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cloister.attacks.arrays import Bools, Floats, Labels, labels_below, members_of, memberships_of
from cloister.errors import InputError

__all__ = ["gap", "gap_accuracy", "unlikely"]

_MOST_CLASSES = 2**63 - 1


def gap(released: npt.ArrayLike, labels: npt.ArrayLike) -> Floats:
    """The gap attack of Yeom et al. (2018): who is answered rightly is a member.

    Args:
        released: (N,) classes that the victim answers.
        labels: (N,) true ones, or those trained on.

    Returns:
        (N,) 1 for what is called a member, else 0.

    Raises:
        InputError: another shape, no integers, or below 0.
    """
    answers, truth = _both(released, labels)
    right: Bools = answers == truth
    return right.astype(np.float64)


def gap_accuracy(released: npt.ArrayLike, labels: npt.ArrayLike, is_member: npt.ArrayLike) -> float:
    """Balanced accuracy of the gap attack: (1 + accuracy on members - accuracy on non-members) / 2.

    Args:
        released: as for `gap`, and so are labels and errors.
        labels: likewise.
        is_member: (N,) bool, at least two of each kind.
    """
    right = gap(released, labels)
    members = members_of(is_member, len(right))
    return float((1 + right[members].mean() - right[~members].mean()) / 2)


def unlikely(
    released: npt.ArrayLike, labels: npt.ArrayLike, shadow_released: npt.ArrayLike, is_in: npt.ArrayLike
) -> Floats:
    """How unlikely the released class is for shadows that were not trained on a sample, if it is the right one.

    The right class, where those shadows would rarely find it, is a sign of memory. A wrong one is no sign, however
    rare: a victim seldom fails on what it was trained on. So wrong answers come below all right ones, the rarest last.

    Args:
        released: (N,) classes that the victim answers.
        labels: (N,) those trained on.
        shadow_released: (M, N) classes that M shadows answer.
        is_in: (M, N) bool: which shadow was trained on which sample.

    Returns:
        (N,): -log q for right answers, log q for wrong ones, where q = (k + 1) / (n + 2) if k of the n shadows that
        were not trained on a sample answer so.

    Raises:
        InputError: arrays that do not fit each other, or a sample that all shadows were trained on.
    """
    answers, truth = _both(released, labels)
    shadows = labels_below(shadow_released, _MOST_CLASSES, "shadow_released", (None, len(answers)))
    outside = ~memberships_of(is_in, (len(shadows), len(answers)))
    n = outside.sum(axis=0)
    if not n.all():
        raise InputError(
            f"is_in: expected a shadow with each sample out, but {int((n == 0).sum())} of {len(n)} have none, "
            f"the first is sample {int(n.argmin())}",
            "train shadows in pairs on complementary halves",
        )
    surprise = -np.log((((shadows == answers) & outside).sum(axis=0) + 1) / (n + 2))
    signed: Floats = np.where(answers == truth, surprise, -surprise)
    return signed


def _both(released: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Labels, Labels]:
    answers = labels_below(released, _MOST_CLASSES, "released", (None,))
    return answers, labels_below(labels, _MOST_CLASSES, "labels", (len(answers),))
