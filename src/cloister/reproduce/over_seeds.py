"""Exposures of several seeds as one: means with intervals over bases of their own, each with members of its own."""

from __future__ import annotations

from collections.abc import Sequence

from cloister.exposure.document import Comparison, Exposure, Interval, LayerExposure, Memorisation, Point, Ratio
from cloister.exposure.statistics import interval

__all__ = ["layers_over_seeds"]


def layers_over_seeds(exposures: Sequence[Exposure]) -> tuple[LayerExposure, ...]:
    """Layers with means and intervals (Student's t) over seeds; a control is over the seeds that have it.

    Args:
        exposures: at least one, all of the same layers; what is a mean over repeats in one counts as a single value.
    """
    return tuple(_layer(layers) for layers in zip(*(one.layers for one in exposures), strict=True))


def _layer(layers: Sequence[LayerExposure]) -> LayerExposure:
    first = layers[0]
    return LayerExposure(
        name=first.name,
        depth=first.depth,
        parameters=first.parameters,
        n_parameters=first.n_parameters,
        measured=_comparison([layer.measured for layer in layers]),
        curve=tuple(_point(points) for points in zip(*(layer.curve for layer in layers), strict=True)),
        equal_steps=_comparison([layer.equal_steps for layer in layers]),
        reinitialised=_if_done([layer.reinitialised for layer in layers]),
        unseen_base=_if_done([layer.unseen_base for layer in layers]),
        memorisation=_memorisation([layer.memorisation for layer in layers]),
    )


def _memorisation(found: Sequence[Memorisation]) -> Memorisation:
    return Memorisation(
        measured=interval([one.measured.mean for one in found]),
        reinitialised=_interval_if_done([one.reinitialised for one in found]),
        unseen_base=_interval_if_done([one.unseen_base for one in found]),
    )


def _interval_if_done(found: Sequence[Interval | None]) -> Interval | None:
    done = [one.mean for one in found if one is not None]
    return interval(done) if done else None


def _point(points: Sequence[Point]) -> Point:
    return Point(epoch=points[0].epoch, comparison=_comparison([point.comparison for point in points]))


def _if_done(comparisons: Sequence[Comparison | None]) -> Comparison | None:
    done = [one for one in comparisons if one is not None]
    return _comparison(done) if done else None


def _comparison(comparisons: Sequence[Comparison]) -> Comparison:
    return Comparison(
        by_loss=_ratio([one.by_loss for one in comparisons]),
        by_accuracy=_ratio([one.by_accuracy for one in comparisons]),
    )


def _ratio(ratios: Sequence[Ratio]) -> Ratio:
    """The mean of ratios, not the ratio of means; undefined where it is in one seed."""
    exposures = [one.exposure.mean for one in ratios if one.exposure is not None]
    reasons = [one.undefined for one in ratios if one.exposure is None]
    return Ratio(
        p=interval([one.p.mean for one in ratios]),
        r=interval([one.r.mean for one in ratios]),
        exposure=None if reasons else interval(exposures),
        undefined=f"in {len(reasons)} of {len(ratios)} seeds: {reasons[0]}" if reasons else None,
    )
