"""What Mo et al. (CCS 2019) say of the layers of VGG-7, and whether it holds of other numbers: pure functions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from cloister.exposure.document import LayerExposure

__all__ = [
    "CONVOLUTIONS",
    "DENSE",
    "LAST_CONVOLUTION",
    "PAPER",
    "Correlation",
    "PaperSet",
    "SetPair",
    "Statement",
    "agreement",
    "correlate",
    "judge",
    "with_described_order",
]


class PaperSet(NamedTuple):
    """A data set of the paper.

    Attributes:
        file: of `cloister.load_dataset`, in the folder of data.
        epochs: section 2.2.
        last_convolution: exposure of the last convolution, section 2.3.
    """

    file: str
    epochs: int
    last_convolution: float


PAPER = {
    "mnist": PaperSet("MNIST", 20, 0.63),
    "fashion-mnist": PaperSet("FashionMNIST", 40, 0.63),
    "cifar10": PaperSet("cifar10.npz", 60, 0.50),
}
#: The layers of `zoo:vgg7`: `16C3-16C3-MP-32C3-32C3-MP-32C3-32C3-MP`, then `64FC` and `10SM`.
CONVOLUTIONS = ("features.0", "features.2", "features.5", "features.7", "features.10", "features.12")
DENSE = ("classifier.0", "classifier.2")
FIRST, LAST_CONVOLUTION = CONVOLUTIONS[0], CONVOLUTIONS[-1]

#: "Almost the same" order is taken as a rank correlation of at least this.
_ALMOST_THE_SAME = 0.8

#: Exposures by layer; None where undefined.
Values = Mapping[str, float | None]


class Correlation(msgspec.Struct, frozen=True, kw_only=True):
    """Spearman's rank correlation.

    Attributes:
        rho: its value; None if there is none: fewer than three layers, or all alike.
        p: two-sided, over all orders that there are, of the hypothesis that the two have nothing to do with each other.
        n: layers that are compared; those with an undefined exposure are not among them.
    """

    rho: float | None
    p: float | None
    n: int


class SetPair(msgspec.Struct, frozen=True, kw_only=True):
    """How alike the order of the layers is on two data sets."""

    one: str
    other: str
    correlation: Correlation


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the paper states.

    Attributes:
        claim: in words.
        data: of which data set; None of all together.
        holds: of the means over seeds; None if an exposure that it is about is undefined, or an interval missing.
        seeds: in how many seeds it holds by itself; None where it is about several.
        n_seeds: of which it is defined in.
        found: what there is instead, or in proof.
    """

    claim: str
    data: str | None
    holds: bool | None
    seeds: int | None
    n_seeds: int | None
    found: str


# --- correlation ---


def correlate(a: Sequence[float | None], b: Sequence[float | None]) -> Correlation:
    """Spearman's rank correlation where both are defined, with its exact permutation p (at most eight layers)."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    xs, ys = [x for x, _ in pairs], [y for _, y in pairs]
    if len(pairs) < 3 or len(set(xs)) < 2 or len(set(ys)) < 2:
        return Correlation(rho=None, p=None, n=len(pairs))
    import numpy as np
    from scipy import stats

    ranks = stats.rankdata(ys)
    # With the ranks' moments fixed, rho is an increasing function of this sum.
    test = stats.permutation_test(
        (stats.rankdata(xs),),
        lambda own, axis: np.sum(own * ranks, axis=axis),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=math.inf,
    )
    return Correlation(rho=float(stats.spearmanr(xs, ys).statistic), p=float(test.pvalue), n=len(pairs))


def with_described_order(values: Values, *, with_dense: bool = False) -> Correlation:
    """Our order with that of the paper's words: rising to the last convolution.

    Args:
        values: exposures by layer.
        with_dense: put the dense layer just below the last convolution; the paper says only that it is below it.
    """
    order = [*CONVOLUTIONS[:-1], *([DENSE[0]] if with_dense else []), LAST_CONVOLUTION]
    return correlate([values[name] for name in order], list(range(len(order))))


def agreement(sets: Mapping[str, Values]) -> tuple[SetPair, ...]:
    """Between each two data sets, over all layers."""
    return tuple(
        SetPair(
            one=one,
            other=other,
            correlation=correlate([sets[one][name] for name in sets[one]], list(sets[other].values())),
        )
        for one, other in itertools.combinations(sets, 2)
    )


# --- what the paper states ---


def judge(
    layers: Mapping[str, Sequence[LayerExposure]],
    seeds: Mapping[str, Sequence[Sequence[float | None]]],
    pairs: Sequence[SetPair],
) -> tuple[Statement, ...]:
    """Which of the paper's statements hold.

    Args:
        layers: of each data set, over its seeds.
        seeds: exposures of each seed's layers, in the same order.
        pairs: of `agreement`.
    """
    found = [_of_set(data, claim, own, seeds[data]) for claim in _CLAIMS for data, own in layers.items()]
    found += [_value(data, own) for data, own in layers.items()]
    return (*found, *([_same_order(pairs)] if pairs else []))


def _lowest(values: Mapping[str, float]) -> tuple[bool, str]:
    others = {name: value for name, value in values.items() if name != FIRST}
    lowest = min(others, key=lambda name: others[name])
    holds = values[FIRST] < values[lowest]
    return holds, f"lowest: {_text(FIRST if holds else lowest, values)}"


def _rising(values: Mapping[str, float]) -> tuple[bool, str]:
    falls = [(a, b) for a, b in itertools.pairwise(CONVOLUTIONS) if values[b] <= values[a]]
    texts = [f"{_text(a, values)}, then {_text(b, values)}" for a, b in falls]
    return not falls, "; ".join(texts) or f"{values[FIRST]:.2f} to {values[LAST_CONVOLUTION]:.2f}"


def _highest(values: Mapping[str, float]) -> tuple[bool, str]:
    others = {name: value for name, value in values.items() if name != LAST_CONVOLUTION}
    highest = max(others, key=lambda name: others[name])
    holds = values[LAST_CONVOLUTION] > values[highest]
    return holds, f"highest: {_text(LAST_CONVOLUTION if holds else highest, values)}"


def _below(name: str) -> Callable[[Mapping[str, float]], tuple[bool, str]]:
    def verdict(values: Mapping[str, float]) -> tuple[bool, str]:
        return values[name] < values[LAST_CONVOLUTION], f"{_text(name, values)}, {_text(LAST_CONVOLUTION, values)}"

    return verdict


def _text(name: str, values: Mapping[str, float]) -> str:
    return f"{name} {values[name]:.2f}"


class _Claim(NamedTuple):
    """A statement about one data set: of which layers, and whether it holds of their exposures."""

    text: str
    layers: tuple[str, ...]
    verdict: Callable[[Mapping[str, float]], tuple[bool, str]]


_ALL = (*CONVOLUTIONS, *DENSE)
_CLAIMS = (
    _Claim("the first layer has the lowest exposure", _ALL, _lowest),
    _Claim("exposure rises from each convolution to the next", CONVOLUTIONS, _rising),
    _Claim("the last convolution has the highest", _ALL, _highest),
    # The paper has one dense layer after the convolutions in its words, and two in its plan of the network.
    _Claim("the dense layer is below the last convolution", (DENSE[0], LAST_CONVOLUTION), _below(DENSE[0])),
    _Claim("the output layer is below the last convolution", (DENSE[1], LAST_CONVOLUTION), _below(DENSE[1])),
)


def _of_set(
    data: str, claim: _Claim, layers: Sequence[LayerExposure], seeds: Sequence[Sequence[float | None]]
) -> Statement:
    names = [layer.name for layer in layers]
    means = [found.mean if (found := layer.measured.by_loss.exposure) else None for layer in layers]
    holds, text = _verdict(claim, dict(zip(names, means, strict=True)))
    of_seeds = [_verdict(claim, dict(zip(names, values, strict=True)))[0] for values in seeds]
    return Statement(
        claim=claim.text,
        data=data,
        holds=holds,
        seeds=of_seeds.count(True),
        n_seeds=len(of_seeds) - of_seeds.count(None),
        found=text,
    )


def _verdict(claim: _Claim, values: Values) -> tuple[bool | None, str]:
    known = {name: value for name in claim.layers if (value := values[name]) is not None}
    undefined = [name for name in claim.layers if name not in known]
    return (None, f"undefined: {', '.join(undefined)}") if undefined else claim.verdict(known)


def _value(data: str, layers: Sequence[LayerExposure]) -> Statement:
    stated = PAPER[data].last_convolution
    (layer,) = [layer for layer in layers if layer.name == LAST_CONVOLUTION]
    found = layer.measured.by_loss.exposure
    holds, text = None, "undefined"
    if found is not None:
        text = f"{found.mean:.2f}"
        if found.low is not None and found.high is not None:
            holds, text = (
                found.low <= stated <= found.high,
                f"{text}, 95 % interval {found.low:.2f} to {found.high:.2f}",
            )
    claim = f"the last convolution has {stated:.2f}"
    return Statement(claim=claim, data=data, holds=holds, seeds=None, n_seeds=None, found=text)


def _same_order(pairs: Sequence[SetPair]) -> Statement:
    values = [pair.correlation.rho for pair in pairs]
    known = [value for value in values if value is not None]
    holds = None if len(known) < len(values) else min(known) >= _ALMOST_THE_SAME
    texts = ["undefined" if value is None else f"{value:.2f}" for value in values]
    return Statement(
        claim=f"almost the same order on all data sets (rank correlations of at least {_ALMOST_THE_SAME})",
        data=None,
        holds=holds,
        seeds=None,
        n_seeds=None,
        found=", ".join(texts),
    )
