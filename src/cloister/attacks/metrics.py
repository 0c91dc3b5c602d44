"""How well scores tell members from non-members, with intervals, and how one plan's differ from another's.

A sample is called a member if its score is at least a threshold; equal scores are called alike, so ties are never
broken in the attack's favour. Intervals are percentiles of a bootstrap that draws members and non-members anew, each
from their own: they cover the choice of samples, neither the victim's training nor the attack's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn import metrics as sklearn_metrics

from cloister.attacks.arrays import Bools, Floats, members_of, scores_of
from cloister.errors import UserError

__all__ = [
    "FPRS",
    "Difference",
    "Estimate",
    "Metrics",
    "Rate",
    "RateDifference",
    "Roc",
    "area",
    "best_threshold",
    "clopper_pearson",
    "compare",
    "decide",
    "evaluate",
    "judge",
    "least_nonmembers",
]

FPRS = (0.1, 0.01, 0.001)
#: With no false alarm among n non-members, a rate of 3 / n is still within the 95 % interval ("rule of three").
_RULE_OF_THREE = 3
#: Weights that are held at a time: 4 MiB, which stay in a cache.
_CHUNK = 1 << 19
_PERCENTILES = (2.5, 97.5)
_ROC_POINTS = 100

#: From rates of true and false positives (R, T), R resamples at T thresholds, to R values.
_Statistic = Callable[[Floats, Floats], Floats]


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """Members found while at most a share of the non-members is taken for members.

    Attributes:
        fpr: the most false positives allowed, as a share of the non-members.
        tpr: the share of members found; None if undefined.
        exact: its 95 % Clopper-Pearson interval with the threshold as it is; None if undefined.
        threshold: scores from it on are called members; None if undefined, or if none may be.
        undefined: why it is, or None.
    """

    fpr: float
    tpr: Estimate | None
    exact: tuple[float, float] | None
    threshold: float | None
    undefined: str | None


class Roc(msgspec.Struct, frozen=True, kw_only=True):
    """The largest rate of true positives at each rate of false positives, from one non-member on to all."""

    fpr: tuple[float, ...]
    tpr: tuple[float, ...]


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """What scores say of who is a member.

    Attributes:
        schema: its name and version.
        n_members: members among the samples.
        n_nonmembers: the others.
        auc: area under the ROC curve; a tie counts one half.
        balanced_accuracy: mean of the shares of members and of non-members called right. The samples are cut into two
            halves, and each is judged at the threshold that is best for the other; the interval keeps the thresholds.
        best_balanced_accuracy: the same at the best threshold for these very samples, which no attacker knows: an upper
            bound, above 0.5 also for scores that say nothing.
        rates: true positives at few false positives.
        roc: the curve.
        n_resamples: of the bootstrap.
        seed: of the halves and of the bootstrap.
    """

    schema: Literal["cloister.attack-metrics/1"] = "cloister.attack-metrics/1"
    n_members: int
    n_nonmembers: int
    auc: Estimate
    balanced_accuracy: Estimate
    best_balanced_accuracy: Estimate
    rates: tuple[Rate, ...]
    roc: Roc
    n_resamples: int
    seed: int


class RateDifference(msgspec.Struct, frozen=True, kw_only=True):
    """The first attack's true positives at a rate of false positives, less the second's; None where undefined."""

    fpr: float
    tpr: Estimate | None
    undefined: str | None


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """The first attack's value less the second's, on the same samples: paired, so the samples' own spread cancels.

    The fields are those of `Metrics`; an interval that holds 0 says that the two cannot be told apart.
    """

    schema: Literal["cloister.attack-difference/1"] = "cloister.attack-difference/1"
    n_members: int
    n_nonmembers: int
    auc: Estimate
    balanced_accuracy: Estimate
    best_balanced_accuracy: Estimate
    rates: tuple[RateDifference, ...]
    n_resamples: int
    seed: int


def evaluate(
    scores: npt.ArrayLike,
    is_member: npt.ArrayLike,
    *,
    fprs: Sequence[float] = FPRS,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Metrics:
    """Judge an attack.

    Args:
        scores: (N,), larger for what is more likely a member.
        is_member: (N,) bool, at least two of each kind.
        fprs: rates of false positives, each in (0, 1). A rate is undefined with fewer than 3 / rate non-members: even
            no false positive among them would not show that the rate is kept.
        n_resamples: of the bootstrap, at least 100.
        seed: of the halves and of the bootstrap, at least 0.

    Returns:
        Values and intervals.

    Raises:
        InputError: another shape or dtype, NaN or infinity, or too few samples of a kind.
        UserError: settings out of range.
    """
    known, truth = _checked(scores, is_member)
    _check_settings(fprs, n_resamples, seed)
    curve = _Curve(known, truth)
    defined = [fpr for fpr in fprs if _undefined(fpr, truth) is None]
    statistics: list[_Statistic] = [_auc, _best_accuracy, *(_rate_at(fpr) for fpr in defined)]
    found = _bootstrap([curve], statistics, n_resamples, seed)
    accuracy = judge(decide(known, truth, seed=seed), truth, n_resamples=n_resamples, seed=seed)
    rates = dict(zip(defined, found[2:], strict=True))
    return Metrics(
        n_members=curve.n_members,
        n_nonmembers=curve.n_nonmembers,
        auc=found[0],
        balanced_accuracy=accuracy,
        best_balanced_accuracy=found[1],
        rates=tuple(_rate(curve, fpr, rates.get(fpr), truth) for fpr in fprs),
        roc=_roc(known, truth),
        n_resamples=n_resamples,
        seed=seed,
    )


def compare(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    is_member: npt.ArrayLike,
    *,
    fprs: Sequence[float] = FPRS,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """How much better the first attack is than the second, for example under two plans.

    Args:
        first: (N,) scores.
        second: (N,) scores of the same samples.
        is_member: as for `evaluate`, and so are errors.
        fprs: likewise.
        n_resamples: likewise.
        seed: likewise.

    Returns:
        Differences with paired intervals: both attacks on the same resamples.
    """
    one, truth = _checked(first, is_member, "first")
    other = scores_of(second, "second", n=len(truth))
    _check_settings(fprs, n_resamples, seed)
    defined = [fpr for fpr in fprs if _undefined(fpr, truth) is None]
    statistics: list[_Statistic] = [_auc, _best_accuracy, *(_rate_at(fpr) for fpr in defined)]
    found = _bootstrap([_Curve(one, truth), _Curve(other, truth)], statistics, n_resamples, seed)
    decided = [_Curve(decide(values, truth, seed=seed).astype(np.float64), truth) for values in (one, other)]
    rates = dict(zip(defined, found[2:], strict=True))
    return Difference(
        n_members=int(truth.sum()),
        n_nonmembers=int((~truth).sum()),
        auc=found[0],
        balanced_accuracy=_bootstrap(decided, [_auc], n_resamples, seed)[0],
        best_balanced_accuracy=found[1],
        rates=tuple(RateDifference(fpr=fpr, tpr=rates.get(fpr), undefined=_undefined(fpr, truth)) for fpr in fprs),
        n_resamples=n_resamples,
        seed=seed,
    )


def judge(
    called_member: npt.ArrayLike, is_member: npt.ArrayLike, *, n_resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Balanced accuracy of decisions that are made already, for example at a threshold from a shadow model.

    Args:
        called_member: (N,) bool.
        is_member: as for `evaluate`, and so are errors.
        n_resamples: likewise.
        seed: likewise.
    """
    calls = members_of(called_member, np.size(is_member), "called_member", at_least=0)
    truth = members_of(is_member, len(calls))
    _check_settings((), n_resamples, seed)
    # The area under the curve of two scores is the balanced accuracy.
    return _bootstrap([_Curve(calls.astype(np.float64), truth)], [_auc], n_resamples, seed)[0]


def decide(scores: npt.ArrayLike, is_member: npt.ArrayLike, *, seed: int = 0) -> Bools:
    """Call members at thresholds from other samples: those of each half at the best threshold of the other half.

    Args:
        scores: as for `evaluate`.
        is_member: likewise.
        seed: of the halves; members and non-members are halved separately.

    Returns:
        (N,) bool.
    """
    known, truth = _checked(scores, is_member)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0]))
    in_first = np.zeros(len(known), dtype=np.bool_)
    for kind in (truth, ~truth):
        order = rng.permutation(np.flatnonzero(kind))
        in_first[order[: len(order) // 2]] = True
    calls = np.empty(len(known), dtype=np.bool_)
    for half in (in_first, ~in_first):
        calls[~half] = known[~half] >= best_threshold(known[half], truth[half])
    return calls


def area(scores: npt.ArrayLike, is_member: npt.ArrayLike) -> float:
    """Area under the ROC curve alone, without an interval; a tie counts one half. Arguments as for `evaluate`."""
    known, truth = _checked(scores, is_member)
    return float(sklearn_metrics.roc_auc_score(truth, known))


def best_threshold(scores: npt.ArrayLike, is_member: npt.ArrayLike) -> float:
    """The score from which on to call members, for the best balanced accuracy; the highest of equally good ones.

    Args:
        scores: as for `evaluate`.
        is_member: (N,) bool, at least one of each kind.

    Returns:
        One of the scores, or infinity if calling nobody a member is best.
    """
    known = scores_of(scores)
    truth = members_of(is_member, len(known), at_least=1)
    fpr, tpr, thresholds = sklearn_metrics.roc_curve(truth, known, drop_intermediate=False)
    return float(thresholds[np.argmax(tpr - fpr)])


def clopper_pearson(n_hits: int, n: int) -> tuple[float, float]:
    """The exact 95 % interval of a share, Clopper and Pearson (1934).

    Args:
        n_hits: in [0, n].
        n: at least 1.
    """
    interval = stats.binomtest(n_hits, n).proportion_ci(0.95, method="exact")
    return float(interval.low), float(interval.high)


def least_nonmembers(fpr: float) -> int:
    """How many non-members a rate of false positives needs: 3 / fpr, for 0.1 % 3,000."""
    return math.ceil(_RULE_OF_THREE / fpr - 1e-9)


# --- curves: all thresholds of one attack, for any weights of the samples ---


class _Curve:
    """Scores in descending order; equal ones share a threshold."""

    def __init__(self, scores: Floats, is_member: Bools) -> None:
        order = np.argsort(-scores, kind="stable")
        ordered = scores[order]
        self._ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
        self.thresholds = ordered[self._ends]
        # Place of each sample among the members, or among the non-members.
        self._of_member = np.flatnonzero(is_member[order])
        self._of_nonmember = np.flatnonzero(~is_member[order])
        place = np.cumsum(is_member) - 1
        other = np.cumsum(~is_member) - 1
        self._members = place[order[self._of_member]]
        self._nonmembers = other[order[self._of_nonmember]]
        self.n_members, self.n_nonmembers = len(self._members), len(self._nonmembers)

    def rates(self, members: Floats, nonmembers: Floats) -> tuple[Floats, Floats]:
        """True and false positives at each threshold from (0, 0) on, (R, T + 1) each, of R resamples.

        Args:
            members: (R, n_members) how often each is drawn.
            nonmembers: (R, n_nonmembers) likewise.
        """
        return (
            self._shares(members[:, self._members], self._of_member),
            self._shares(nonmembers[:, self._nonmembers], self._of_nonmember),
        )

    def _shares(self, ordered: Floats, places: npt.NDArray[np.int64]) -> Floats:
        """Of what is drawn, how much scores at least each threshold."""
        so_far = np.concatenate([np.zeros((len(ordered), 1)), ordered.cumsum(axis=1)], axis=1)
        at_end = np.searchsorted(places, self._ends, side="right")
        shares: Floats = so_far[:, np.append(0, at_end)] / so_far[:, -1:]
        return shares

    def plain(self) -> tuple[Floats, Floats]:
        """The rates of the samples themselves, (1, T + 1) each."""
        return self.rates(np.ones((1, self.n_members)), np.ones((1, self.n_nonmembers)))


def _auc(tpr: Floats, fpr: Floats) -> Floats:
    area: Floats = (np.diff(fpr, axis=1) * (tpr[:, 1:] + tpr[:, :-1]) / 2).sum(axis=1)
    return area


def _best_accuracy(tpr: Floats, fpr: Floats) -> Floats:
    best: Floats = (tpr - fpr).max(axis=1)
    return best / 2 + 0.5


def _rate_at(fpr: float) -> _Statistic:
    """The largest rate of true positives with at most this rate of false ones."""
    return lambda tpr, of_false: np.take_along_axis(tpr, _last_within(fpr, of_false)[:, None], axis=1)[:, 0]


def _last_within(fpr: float, rates: Floats) -> npt.NDArray[np.int64]:
    """Place of the last threshold of each row that keeps the rate."""
    last: npt.NDArray[np.int64] = (rates <= fpr).sum(axis=1) - 1
    return last


def _bootstrap(
    curves: Sequence[_Curve], statistics: Sequence[_Statistic], n_resamples: int, seed: int
) -> list[Estimate]:
    """Each statistic of the first curve, less that of the second if there is one, with its interval."""
    values = [_values(statistics, [curve.plain() for curve in curves])]
    for members, nonmembers in _resamples(curves[0], n_resamples, seed):
        values.append(_values(statistics, [curve.rates(members, nonmembers) for curve in curves]))
    lows, highs = np.percentile(np.concatenate(values[1:], axis=1), _PERCENTILES, axis=1)
    return [
        Estimate(value=float(value), low=float(low), high=float(high))
        for value, low, high in zip(values[0][:, 0], lows, highs, strict=True)
    ]


def _values(statistics: Sequence[_Statistic], rates: Sequence[tuple[Floats, Floats]]) -> Floats:
    """(statistics, R)."""
    rows = [[statistic(*one) for one in rates] for statistic in statistics]
    return np.array([row[0] - row[1] if len(row) == 2 else row[0] for row in rows])


def _resamples(curve: _Curve, n_resamples: int, seed: int) -> Iterator[tuple[Floats, Floats]]:
    """How often each member and each non-member is drawn, (R, n) each, in pieces that fit into memory."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    sizes = curve.n_members, curve.n_nonmembers
    step = max(1, _CHUNK // max(sizes))
    for start in range(0, n_resamples, step):
        n_rows = min(step, n_resamples - start)
        yield _drawn(rng, n_rows, sizes[0]), _drawn(rng, n_rows, sizes[1])


def _drawn(rng: np.random.Generator, n_rows: int, n: int) -> Floats:
    picked = rng.integers(n, size=(n_rows, n)) + np.arange(n_rows)[:, None] * n
    return np.bincount(picked.ravel(), minlength=n_rows * n).reshape(n_rows, n).astype(np.float64)


# --- parts of the documents ---


def _rate(curve: _Curve, fpr: float, found: Estimate | None, truth: Bools) -> Rate:
    if found is None:
        return Rate(fpr=fpr, tpr=None, exact=None, threshold=None, undefined=_undefined(fpr, truth))
    tpr, false = (one[0] for one in curve.plain())
    first = int(np.searchsorted(tpr, tpr[_last_within(fpr, false[None])[0]]))
    return Rate(
        fpr=fpr,
        tpr=found,
        exact=clopper_pearson(round(found.value * curve.n_members), curve.n_members),
        threshold=float(curve.thresholds[first - 1]) if first else None,
        undefined=None,
    )


def _undefined(fpr: float, truth: Bools) -> str | None:
    n, least = int((~truth).sum()), least_nonmembers(fpr)
    if n >= least:
        return None
    return f"expected at least {least:,} non-members for a false-positive rate of {fpr:g}, but there are {n:,}"


def _roc(scores: Floats, truth: Bools) -> Roc:
    fpr, tpr, _ = sklearn_metrics.roc_curve(truth, scores, drop_intermediate=False)
    grid = np.geomspace(1 / int((~truth).sum()), 1, _ROC_POINTS)
    at = np.searchsorted(fpr, grid * (1 + 1e-12), side="right") - 1  # the grid is rounded
    return Roc(fpr=tuple(grid.tolist()), tpr=tuple(tpr[at].tolist()))


def _checked(scores: npt.ArrayLike, is_member: npt.ArrayLike, name: str = "scores") -> tuple[Floats, Bools]:
    known = scores_of(scores, name)
    return known, members_of(is_member, len(known))


def _check_settings(fprs: Sequence[float], n_resamples: int, seed: int) -> None:
    if not all(0 < fpr < 1 for fpr in fprs):
        raise UserError(f"expected false-positive rates in (0, 1), but got {tuple(fprs)}")
    if n_resamples < 100:
        raise UserError(f"expected at least 100 resamples, but got {n_resamples}", "1000 give intervals to a tenth")
    if seed < 0:
        raise UserError(f"expected a seed of at least 0, but got {seed}")
