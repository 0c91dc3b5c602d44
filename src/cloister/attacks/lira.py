"""LiRA, the likelihood-ratio attack of Carlini et al. (2022), on scaled logits of shadow models, all samples at once.

Each sample's scaled logits under the shadows trained on it (in) and under the others (out) are taken as normal. Centres
are medians, as in the authors' code. With fixed variance there is one variance of all residuals, each around its own
sample's centre; pooling the logits themselves would add how samples differ from each other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cloister.attacks.arrays import Bools, Floats, finite, memberships_of, scores_of
from cloister.errors import InputError

__all__ = ["offline", "online"]

#: As in the authors' code: a sample whose shadows all agree has some spread, too.
_LEAST_SPREAD = 1e-30


class _Normal(NamedTuple):
    centre: Floats
    spread: Floats


def online(
    phi: npt.ArrayLike, shadow_phi: npt.ArrayLike, is_in: npt.ArrayLike, *, fixed_variance: bool = False
) -> Floats:
    """Log-likelihood ratio of in to out: log N(phi; in) - log N(phi; out), algorithm 1 of the paper.

    Args:
        phi: (N,) scaled logits of the victim, see `signals.phi`.
        shadow_phi: (M, N) those of M shadows.
        is_in: (M, N) bool: which shadow was trained on which sample.
        fixed_variance: one variance for all samples, of the pooled residuals: for few shadows.

    Returns:
        (N,) scores, larger for members.

    Raises:
        InputError: arrays that do not fit each other, NaN, or a sample with too few shadows of a kind: two of each, or
            one if the variance is fixed.
    """
    victim, shadows, trained_on = _checked(phi, shadow_phi, is_in)
    inside = _fit(shadows, trained_on, "in", fixed_variance)
    outside = _fit(shadows, ~trained_on, "out", fixed_variance)
    return _log_density(victim, inside) - _log_density(victim, outside)


def offline(
    phi: npt.ArrayLike, shadow_phi: npt.ArrayLike, is_in: npt.ArrayLike, *, fixed_variance: bool = False
) -> Floats:
    """The one-sided test against the shadows that were not trained on a sample, section V-C of the paper.

    The score is z = (phi - centre) / spread itself. The paper's Phi(z) has the same order, but is 1 from z = 8.3 on.
    Arguments, result and errors as for `online`; shadows trained on a sample are left out.
    """
    victim, shadows, trained_on = _checked(phi, shadow_phi, is_in)
    outside = _fit(shadows, ~trained_on, "out", fixed_variance)
    return (victim - outside.centre) / outside.spread


def _checked(phi: npt.ArrayLike, shadow_phi: npt.ArrayLike, is_in: npt.ArrayLike) -> tuple[Floats, Floats, Bools]:
    """The victim's (N,), the shadows' (N, M) and who was trained on what, (N, M)."""
    victim = scores_of(phi, "phi")
    shadows = finite(shadow_phi, "shadow_phi", (None, len(victim)))
    trained_on = memberships_of(is_in, (len(shadows), len(victim)))
    return victim, np.ascontiguousarray(shadows.T), np.ascontiguousarray(trained_on.T)


def _fit(shadows: Floats, chosen: Bools, kind: str, fixed_variance: bool) -> _Normal:
    """Centre and spread of the chosen ones of each row of (N, M)."""
    counts = chosen.sum(axis=1)
    _check_counts(counts, kind, 1 if fixed_variance else 2)
    centre = _medians(shadows, chosen, counts)
    around = centre if fixed_variance else np.where(chosen, shadows, 0).sum(axis=1) / counts
    squares = np.where(chosen, shadows - around[:, None], 0) ** 2
    variance = squares.sum() / counts.sum() if fixed_variance else squares.sum(axis=1) / counts
    return _Normal(centre, np.broadcast_to(np.sqrt(variance) + _LEAST_SPREAD, centre.shape))


def _check_counts(counts: npt.NDArray[np.int64], kind: str, least: int) -> None:
    few = counts < least
    if few.any():
        at = int(few.argmax())
        raise InputError(
            f"is_in: expected at least {least} shadows with each sample {kind}, but sample {at} has {counts[at]}, "
            f"and {int(few.sum())} of {len(few)} have too few",
            "train shadows in pairs on complementary halves; with `fixed_variance` one of each kind is enough",
        )
    if least == 1 and counts.max() == 1:
        raise InputError(
            f"is_in: expected two shadows with the same sample {kind} for at least one sample, but there is no such",
            "residuals need two shadows of a kind: train another pair",
        )


def _medians(values: Floats, chosen: Bools, counts: npt.NDArray[np.int64]) -> Floats:
    """Of the chosen ones of each row."""
    ascending = np.sort(np.where(chosen, values, np.inf), axis=1)
    rows = np.arange(len(values))
    low: Floats = ascending[rows, (counts - 1) // 2]
    high: Floats = ascending[rows, counts // 2]
    return low + (high - low) / 2


def _log_density(values: Floats, normal: _Normal) -> Floats:
    """Of a normal distribution, but for the constant that cancels in a ratio."""
    return -(((values - normal.centre) / normal.spread) ** 2) / 2 - np.log(normal.spread)
