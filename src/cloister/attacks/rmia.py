"""RMIA, the robust membership inference attack of Zarifzadeh, Liu and Shokri (2024).

How much more likely the victim finds a sample than reference models do, compared with the same of samples that no model
has seen.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cloister.attacks.arrays import Bools, Floats, memberships_of, probabilities
from cloister.errors import InputError, UserError

__all__ = ["offline", "online"]

#: Under all references a probability of 0: as unlikely as a number can say.
_LEAST = float(np.finfo(np.float64).tiny)


def offline(
    p: npt.ArrayLike,
    reference_p: npt.ArrayLike,
    is_in: npt.ArrayLike,
    population_p: npt.ArrayLike,
    reference_population_p: npt.ArrayLike,
    *,
    a: float = 0.3,
    gamma: float = 1.0,
) -> Floats:
    """With references that were not trained on a sample; those that were are left out.

    p(x) is taken as ((1 + a) mean_out(x) + 1 - a) / 2, for samples and population (algorithm 2 of the paper).

    Args:
        p: (N,) the victim's probability of each sample's label, see `signals.confidence`.
        reference_p: (M, N) those of M reference models.
        is_in: (M, N) bool: which reference was trained on which sample.
        population_p: (Z,) the victim's for samples of the same distribution that no model was trained on.
        reference_population_p: (M, Z) those of the references.
        a: in [0, 1]: how far probabilities of members are from 1 where those of non-members are 0.
        gamma: positive: how much larger a sample's ratio must be than that of one of the population.

    Returns:
        (N,) in [0, 1]: the share of the population that each sample dominates.

    Raises:
        InputError: arrays that do not fit each other, NaN, or a sample without a reference.
        UserError: `a` or `gamma` out of range.
    """
    if not 0 <= a <= 1:
        raise UserError(f"RMIA: expected `a` in [0, 1], but got {a}")
    references, trained_on = _references(reference_p, is_in)
    population = probabilities(reference_population_p, "reference_population_p", (len(references), None))
    usual = ((1 + a) * _mean(references, ~trained_on, "out") + 1 - a) / 2
    usual_population = ((1 + a) * population.mean(axis=0) + 1 - a) / 2
    return _dominated(p, usual, population_p, usual_population, gamma)


def online(
    p: npt.ArrayLike,
    reference_p: npt.ArrayLike,
    is_in: npt.ArrayLike,
    population_p: npt.ArrayLike,
    reference_population_p: npt.ArrayLike,
    *,
    gamma: float = 1.0,
) -> Floats:
    """With references that were trained on a sample and others: p(x) is the mean of both means.

    The population has only references that were not trained on it: for it p(z) is their mean. Arguments, result and
    errors as for `offline`.
    """
    references, trained_on = _references(reference_p, is_in)
    population = probabilities(reference_population_p, "reference_population_p", (len(references), None))
    usual = (_mean(references, trained_on, "in") + _mean(references, ~trained_on, "out")) / 2
    return _dominated(p, usual, population_p, population.mean(axis=0), gamma)


def _references(reference_p: npt.ArrayLike, is_in: npt.ArrayLike) -> tuple[Floats, Bools]:
    references = probabilities(reference_p, "reference_p", (None, None))
    n_models, n = references.shape
    return references, memberships_of(is_in, (n_models, n))


def _mean(references: Floats, chosen: Bools, kind: str) -> Floats:
    counts = chosen.sum(axis=0)
    if not counts.all():
        raise InputError(
            f"is_in: expected a reference with each sample {kind}, but {int((counts == 0).sum())} of {len(counts)} "
            f"have none, the first is sample {int(counts.argmin())}",
            "train references in pairs on complementary halves",
        )
    mean: Floats = np.where(chosen, references, 0).sum(axis=0) / counts
    return mean


def _dominated(
    p: npt.ArrayLike, usual: Floats, population_p: npt.ArrayLike, usual_population: Floats, gamma: float
) -> Floats:
    """Share of the population whose ratio, times gamma, is below a sample's ratio."""
    if not 0 < gamma < float("inf"):
        raise UserError(f"RMIA: expected a positive `gamma`, but got {gamma}")
    ratio = probabilities(p, "p", usual.shape) / np.maximum(usual, _LEAST)
    of_population = probabilities(population_p, "population_p", usual_population.shape)
    limits = np.sort(gamma * (of_population / np.maximum(usual_population, _LEAST)))
    return np.searchsorted(limits, ratio, side="left") / len(limits)
