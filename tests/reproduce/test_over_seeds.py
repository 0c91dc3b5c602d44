"""Seeds as one: means and Student's t against numbers computed by hand."""

import math

import pytest

from cloister.reproduce.over_seeds import layers_over_seeds
from tests.reproduce import cases

#: t of 0.975 with two degrees of freedom, from a table.
T_2 = 4.302653


def seeds(*first_layer, **fields):
    return [cases.exposure((value, *cases.DESCRIBED[1:]), **fields) for value in first_layer]


def test_mean_and_interval_over_seeds():
    """0.1, 0.2 and 0.6: mean 0.3, standard deviation sqrt(0.07)."""
    (layer, *_) = layers_over_seeds(seeds(0.1, 0.2, 0.6))
    found = layer.measured.by_loss.exposure
    half = T_2 * math.sqrt(0.07) / math.sqrt(3)
    assert found.mean == pytest.approx(0.3)
    assert (found.low, found.high) == (pytest.approx(0.3 - half, rel=1e-6), pytest.approx(0.3 + half, rel=1e-6))
    assert layer.measured.by_accuracy.exposure.mean == pytest.approx(0.15)
    assert layer.curve[0].comparison == layer.equal_steps == layer.measured


def test_it_is_the_mean_of_ratios_and_not_their_ratio():
    """p 1 and 3, exposures 0.5 and 0.1: r 0.5 and 2.7. The ratio of the means would be 0.2."""
    (layer, *_) = layers_over_seeds([*seeds(0.5, p=1.0), *seeds(0.1, p=3.0)])
    found = layer.measured.by_loss
    assert (found.p.mean, found.r.mean) == (pytest.approx(2.0), pytest.approx(1.6))
    assert found.exposure.mean == pytest.approx(0.3)


def test_undefined_in_one_seed_is_undefined_and_says_where():
    (layer, *others) = layers_over_seeds(seeds(0.1, None, 0.3))
    assert layer.measured.by_loss.exposure is None
    assert layer.measured.by_loss.undefined == "in 1 of 3 seeds: M_p's gap is 0"
    assert all(other.measured.by_loss.exposure is not None for other in others)


def test_controls_are_over_the_seeds_that_have_them():
    controlled = cases.exposure(anew=[0.4] * 8, unseen=[1.0] * 8)
    (layer, *_) = layers_over_seeds([controlled, *seeds(0.3, 0.5)])
    assert layer.reinitialised.by_loss.exposure.mean == pytest.approx(0.4)
    assert layer.reinitialised.by_loss.exposure.low is None
    assert layer.measured.by_loss.exposure.mean == pytest.approx(0.3)
    (layer, *_) = layers_over_seeds(seeds(0.3, 0.5))
    assert layer.reinitialised is None
    assert layer.unseen_base is None
