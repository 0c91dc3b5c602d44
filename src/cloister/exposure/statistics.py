"""From readings to intervals, ratios, ranks and words: pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from cloister.exposure.document import Comparison, Interval, LayerExposure, Ranking, Ratio, Reading, Separation

__all__ = [
    "compare",
    "describe",
    "exposure_of",
    "interval",
    "memorisation",
    "memorisation_of",
    "rank",
    "ratio",
    "separation",
]

_Floats = npt.NDArray[np.float64]

_NORMAL_95 = 1.96
#: From this rank correlation on, the number of parameters is said to explain a ranking.
_EXPLAINS = 0.7
#: A re-initialised layer that scores this share of its value is said to keep it.
_KEEPS = 0.9


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % confidence interval of at least one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean=mean, low=None, high=None)
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean=mean, low=mean - half, high=mean + half)


def separation(members: _Floats, nonmembers: _Floats) -> Separation:
    """How far members lie above non-members: 2 AUC - 1, ties counted half, with its standard error.

    Args:
        members: (n,) a score of each, at least two.
        nonmembers: (m,) likewise.

    Reference:
        DeLong, DeLong and Clarke-Pearson, Comparing the areas under two or more correlated ROC curves, 1988.
    """
    from scipy.stats import rankdata

    n, m = len(members), len(nonmembers)
    ranks = rankdata(np.concatenate([members, nonmembers]))
    # The share of the other side below each member, and above each non-member.
    below = (ranks[:n] - rankdata(members)) / m
    above = 1 - (ranks[n:] - rankdata(nonmembers)) / n
    error = 2 * math.sqrt(below.var(ddof=1) / n + above.var(ddof=1) / m)
    return Separation(value=float(2 * below.mean() - 1), error=error)


def memorisation(found: Sequence[Separation]) -> Interval:
    """Mean and 95 % interval of what was found in each repeat, on a held-out half of the samples.

    By the law of total variance: that of the mean over repeats for these samples (Student's t), and that of a mean over
    endless repeats, which is of all the samples, twice as many as one repeat holds out. A single repeat has the
    variance of its half.
    """
    of_repeats = interval([one.value for one in found])
    variance = statistics.fmean(one.error**2 for one in found) / min(len(found), 2)
    spread = 0.0 if of_repeats.high is None else of_repeats.high - of_repeats.mean
    half = math.hypot(spread, _NORMAL_95 * math.sqrt(variance))
    return Interval(mean=of_repeats.mean, low=max(of_repeats.mean - half, -1.0), high=min(of_repeats.mean + half, 1.0))


def compare(p: Sequence[Reading], r: Sequence[Reading], *, undefined: str | None = None) -> Comparison:
    """M_p against M_r, a reading of each for every repeat; undefined for a reason that is known already, or None."""
    by_loss = [one.epsilon for one in p], [one.epsilon for one in r], [one.loss_error for one in p]
    by_accuracy = [one.gap for one in p], [one.gap for one in r], [one.accuracy_error for one in p]
    return Comparison(by_loss=ratio(*by_loss, undefined), by_accuracy=ratio(*by_accuracy, undefined))


def ratio(p: Sequence[float], r: Sequence[float], errors: Sequence[float], undefined: str | None = None) -> Ratio:
    """Equation 4, repeat by repeat; undefined where ε(M_p) cannot be told from 0.

    That is where the mean of ε(M_p) is at most 1.96 of its standard errors from the spread of the samples, or its
    interval over the repeats reaches down to 0, or it is not positive in one of them.

    Args:
        p: ε(M_p) of each repeat.
        r: ε(M_r) of each repeat.
        errors: standard error of each ε(M_p) as an estimate from finitely many samples.
        undefined: why it is undefined anyway, or None.
    """
    of_p = interval(p)
    reason = undefined or _undefined(of_p, min(p), statistics.fmean(errors))
    exposure = None if reason else interval([(a - b) / a for a, b in zip(p, r, strict=True)])
    return Ratio(p=of_p, r=interval(r), exposure=exposure, undefined=reason)


def _undefined(p: Interval, lowest: float, error: float) -> str | None:
    if p.mean <= _NORMAL_95 * error:
        return f"M_p's gap {p.mean:.2g} cannot be told from 0: its standard error over the samples is {error:.2g}"
    if p.low is not None and p.low <= 0:
        return f"M_p's gap {p.mean:.2g} cannot be told from 0: its interval over the repeats begins at {p.low:.2g}"
    return f"M_p's gap is {lowest:.2g} in one repeat" if lowest <= 0 else None


def exposure_of(layer: LayerExposure) -> Interval | None:
    """The paper's measure, by loss."""
    return layer.measured.by_loss.exposure


def memorisation_of(layer: LayerExposure) -> Interval:
    """The measure that the controls do not score."""
    return layer.memorisation.measured


def rank(layers: Sequence[LayerExposure], value: Callable[[LayerExposure], Interval | None] = exposure_of) -> Ranking:
    """Order layers by a measure, and correlate the order with their size and depth."""
    known = [(layer, found.mean) for layer in layers if (found := value(layer))]
    values = [value for _, value in known]
    with_parameters = _spearman(values, [layer.n_parameters for layer, _ in known])
    with_depth = _spearman(values, [layer.depth for layer, _ in known])
    explains = None
    if with_parameters is not None:
        explains = with_parameters >= max(_EXPLAINS, -1 if with_depth is None else with_depth)
    return Ranking(
        layers=tuple(layer.name for layer, _ in sorted(known, key=lambda one: -one[1])),
        with_parameters=with_parameters,
        with_depth=with_depth,
        capacity_explains=explains,
    )


def _spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    if len(a) < 3 or len(set(a)) < 2 or len(set(b)) < 2:
        return None
    from scipy import stats

    return float(stats.spearmanr(a, b).statistic)


def describe(
    layers: Sequence[LayerExposure], ranking: Ranking, memorisation_ranking: Ranking | None = None
) -> tuple[str, ...]:
    """What the rankings and the controls say, in sentences."""
    about_memorisation = () if memorisation_ranking is None else _on_memorisation(layers, memorisation_ranking)
    return (*_on_capacity(ranking), *_on_reinitialised(layers), *_on_unseen(layers), *about_memorisation)


def _on_capacity(ranking: Ranking) -> Iterable[str]:
    if ranking.capacity_explains is None:
        return
    depth = "unknown" if ranking.with_depth is None else f"{ranking.with_depth:.2f}"
    numbers = f"rank correlation {ranking.with_parameters:.2f} with the number of parameters, {depth} with depth"
    if ranking.capacity_explains:
        yield f"capacity explains the ranking: {numbers}; it tells how much a layer can learn, not what it remembers"
    else:
        yield f"capacity alone does not explain the ranking: {numbers}"


def _on_reinitialised(layers: Sequence[LayerExposure]) -> Iterable[str]:
    pairs = [
        (a, b)
        for layer in layers
        if (a := _mean(layer.measured)) is not None
        and layer.reinitialised is not None
        and (b := _mean(layer.reinitialised)) is not None
    ]
    kept = [a for a, b in pairs if a > 0 and b >= _KEEPS * a]
    if kept:
        yield (
            f"{len(kept)} of {len(pairs)} layers score at least {_KEEPS:.0%} of their value with weights drawn anew: "
            "for these it is not about what the weights held"
        )
    elif pairs:
        yield f"none of {len(pairs)} layers keeps {_KEEPS:.0%} of its value with weights drawn anew"


def _on_unseen(layers: Sequence[LayerExposure]) -> Iterable[str]:
    own = [a for layer in layers if layer.unseen_base and (a := _mean(layer.measured)) is not None]
    unseen = [b for layer in layers if layer.unseen_base and (b := _mean(layer.unseen_base)) is not None]
    if not own or not unseen:
        return
    a, b = statistics.median(own), statistics.median(unseen)
    numbers = f"median {b:.2f} in a base that never saw the members, {a:.2f} in the target"
    if b >= a:
        yield f"a high value is no sign of memory: {numbers}"
    else:
        yield f"the target scores above a base that never saw the members: {numbers}"


def _on_memorisation(layers: Sequence[LayerExposure], ranking: Ranking) -> Iterable[str]:
    def count(found: Sequence[Interval | None]) -> str | None:
        known = [one for one in found if one is not None]
        return f"{sum((one.low or 0) > 0 for one in known)} of {len(known)}" if known else None

    measured = [layer.memorisation.measured for layer in layers]
    first = max(measured, key=lambda one: one.mean)
    n_alike = sum((one.high or one.mean) >= (first.low or first.mean) for one in measured) - 1
    alike = f"; the intervals of {n_alike} others meet its own" if n_alike else ""
    yield f"memorisation lies above 0 in {count(measured)} layers; highest in `{ranking.layers[0]}`{alike}"
    if anew := count([layer.memorisation.reinitialised for layer in layers]):
        yield f"memorisation lies above 0 in {anew} layers with weights drawn anew; 0 are expected"
    if unseen := count([layer.memorisation.unseen_base for layer in layers]):
        yield f"memorisation lies above 0 in {unseen} layers of a base that never saw the members; 0 are expected"


def _mean(comparison: Comparison) -> float | None:
    found = comparison.by_loss.exposure
    return None if found is None else found.mean
