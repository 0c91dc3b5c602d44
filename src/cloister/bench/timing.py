"""Several ways to do the same, timed side by side: rounds in which each has its turn, and ratios of neighbours.

A machine that others use is now faster, now slower. What ran in the same round met the same machine, so that the ratio
of two turns means something where their times do not. No time leaves this module but in a ratio.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cloister.progress import Progress

__all__ = ["Ratio", "median_interval", "paired_ratio", "time_rounds"]

#: A turn takes about as long, and no fewer and no more runs than these.
_TURN_SECONDS = 0.02
_LEAST_RUNS, _MOST_RUNS = 3, 100
#: That the true median lies in an interval.
_CONFIDENCE = 0.95


class Ratio(NamedTuple):
    """How many times as long one takes as another.

    Attributes:
        ratio: the median of the rounds' ratios.
        low: lower end of an interval that holds the true median with 95 %.
        high: its upper end.
    """

    ratio: float
    low: float
    high: float


def time_rounds(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress | None = None,
) -> dict[str, npt.NDArray[np.float64]]:
    """Time what is given in rounds; within a round each has one turn, in an order drawn anew.

    A turn starts with a run that is not timed, since the others have taken the caches. How many runs follow is found
    out beforehand, so that turns take about 20 ms.

    Args:
        runs: what to time, by name.
        rounds: at least 1.
        seed: of the order.
        clock: gives seconds.
        progress: told how far it is, or None.

    Returns:
        For each name (rounds,) seconds: the median run of its turn.
    """
    order = np.random.default_rng(seed)
    counts = {name: _runs_in_a_turn(run, clock) for name, run in runs.items()}
    seconds = {name: np.empty(rounds) for name in runs}
    names = list(runs)
    for done in range(rounds):
        if progress:
            progress.update(done, rounds, "timing")
        for at in order.permutation(len(names)):
            name = names[at]
            seconds[name][done] = np.median(_turn(runs[name], counts[name], clock))
    return seconds


def _runs_in_a_turn(run: Callable[[], object], clock: Callable[[], float]) -> int:
    fastest = float(_turn(run, _LEAST_RUNS, clock).min())
    return round(min(_MOST_RUNS, max(_LEAST_RUNS, _TURN_SECONDS / max(fastest, 1e-9))))


def _turn(run: Callable[[], object], n_runs: int, clock: Callable[[], float]) -> npt.NDArray[np.float64]:
    """Seconds of each run, (n_runs,), after one that does not count."""
    run()
    times = [clock()]
    for _ in range(n_runs):
        run()
        times.append(clock())
    return np.diff(times)


def paired_ratio(seconds: npt.NDArray[np.float64], against: npt.NDArray[np.float64]) -> Ratio:
    """The ratio of two that ran in the same rounds.

    Args:
        seconds: (rounds,) of the one.
        against: (rounds,) of the other; entry i is of the same round.
    """
    ratios = seconds / against
    return Ratio(float(np.median(ratios)), *median_interval(ratios))


def median_interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Two of the values between which the true median lies with 95 % at least, whatever the distribution.

    Of n values each lies below the true median with 1/2: the k-th smallest and k-th largest hold it with 1 - 2 P(fewer
    than k of n coins show heads). With fewer than 6 values even the smallest and the largest promise less.
    """
    ordered = np.sort(values)
    n = len(ordered)
    k, outside = 1, 2 * 0.5**n
    while k < n // 2 and outside + 2 * math.comb(n, k) * 0.5**n <= 1 - _CONFIDENCE:
        outside += 2 * math.comb(n, k) * 0.5**n
        k += 1
    return float(ordered[k - 1]), float(ordered[n - k])
