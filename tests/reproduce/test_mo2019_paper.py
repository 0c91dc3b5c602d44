"""What the paper states, judged of made-up exposures."""

import itertools

import pytest
from scipy import stats

from cloister.reproduce import mo2019_paper as paper
from cloister.reproduce.over_seeds import layers_over_seeds
from tests.reproduce import cases

#: On this one all of the paper's words hold.
DESCRIBED = cases.DESCRIBED


def values(exposures):
    return dict(zip(cases.NAMES, exposures, strict=True))


def judge(*seeds, data="mnist", others=()):
    """Statements by (claim, data set): a data set of these seeds, and perhaps others."""
    sets = {data: seeds, **dict(others)}
    layers = {name: layers_over_seeds([cases.exposure(one) for one in own]) for name, own in sets.items()}
    pairs = paper.agreement({name: values(own[0]) for name, own in sets.items()})
    return {(one.claim, one.data): one for one in paper.judge(layers, sets, pairs)}


def about(found, words, data="mnist"):
    (one,) = [one for (claim, of), one in found.items() if words in claim and of == data]
    return one


def swapped(a, b):
    """The described exposures with those of two layers exchanged."""
    changed = list(DESCRIBED)
    changed[a], changed[b] = changed[b], changed[a]
    return tuple(changed)


WORDS = ["lowest", "rises", "highest", "dense layer is below", "output layer is below"]


@pytest.mark.parametrize("words", WORDS)
def test_what_the_paper_describes_holds(words):
    one = about(judge(DESCRIBED, DESCRIBED), words)
    assert (one.holds, one.seeds, one.n_seeds) == (True, 2, 2)


@pytest.mark.parametrize(
    ("exposures", "broken"),
    [
        (swapped(0, 7), {"lowest"}),
        (swapped(2, 3), {"rises"}),
        (swapped(5, 6), {"rises", "highest", "dense layer is below"}),
        (swapped(3, 4), {"rises"}),
        (swapped(5, 7), {"rises", "highest", "dense layer is below", "output layer is below"}),
        ((0.5,) * 8, {"lowest", "rises", "highest", "dense layer is below", "output layer is below"}),
    ],
)
def test_what_does_not_hold_is_said_not_to(exposures, broken):
    found = judge(exposures)
    assert {words for words in WORDS if about(found, words).holds is False} == broken
    assert all(about(found, words).holds is not None for words in WORDS)


def test_found_says_what_there_is_instead():
    found = judge(swapped(2, 3))
    assert about(found, "rises").found == "features.5 0.40, then features.7 0.30"
    assert about(judge(swapped(5, 6)), "highest").found == "highest: classifier.0 0.63"


def test_seeds_are_counted_one_by_one():
    one = about(judge(DESCRIBED, DESCRIBED, swapped(5, 6)), "dense layer is below")
    assert (one.holds, one.seeds, one.n_seeds) == (True, 2, 3)


def test_undefined_exposures_make_a_statement_unknown_only_where_it_is_about_them():
    without_output = (*DESCRIBED[:7], None)
    found = judge(DESCRIBED, without_output)
    for words, holds in [("lowest", None), ("rises", True), ("highest", None), ("output layer", None)]:
        one = about(found, words)
        assert one.holds is holds
    assert about(found, "output layer").found == "undefined: classifier.2"
    assert (about(found, "output layer").seeds, about(found, "output layer").n_seeds) == (1, 1)
    assert about(judge((None,) * 8), "the last convolution has 0.63").holds is None


def with_last(value):
    return (*DESCRIBED[:5], value, *DESCRIBED[6:])


@pytest.mark.parametrize(
    ("seeds", "data", "holds"),
    [
        ((0.60, 0.65, 0.62), "mnist", True),
        ((0.90, 0.91, 0.92), "mnist", False),
        ((0.90, 0.91, 0.92), "cifar10", False),
        ((0.45, 0.52, 0.55), "cifar10", True),
        ((0.63,), "fashion-mnist", None),  # without an interval
    ],
)
def test_stated_values_hold_where_they_lie_in_the_interval(seeds, data, holds):
    found = judge(*(with_last(one) for one in seeds), data=data)
    stated = {"mnist": "0.63", "fashion-mnist": "0.63", "cifar10": "0.50"}[data]
    assert about(found, f"the last convolution has {stated}", data).holds is holds


@pytest.mark.parametrize(
    ("other", "holds"), [(DESCRIBED, True), (swapped(2, 3), True), (DESCRIBED[::-1], False), ((None,) * 8, None)]
)
def test_order_on_two_data_sets(other, holds):
    found = judge(DESCRIBED, others={"cifar10": [other]}.items())
    assert about(found, "almost the same order", None).holds is holds
    assert not [claim for claim, _ in judge(DESCRIBED) if "same order" in claim]


# --- correlation ---


def test_correlation_is_spearmans_with_the_exact_p():
    a, b = [0.1, 0.5, 0.3, 0.4, 0.9, 0.7], [1, 2, 3, 4, 5, 6]
    found = paper.correlate(a, b)
    rho = stats.spearmanr(a, b).statistic
    as_far = [abs(stats.spearmanr(order, b).statistic) >= abs(rho) - 1e-9 for order in itertools.permutations(b)]
    assert found.rho == pytest.approx(rho)
    assert found.p == pytest.approx(sum(as_far) / len(as_far))


def test_correlation_of_the_described_order():
    found = paper.with_described_order(values(DESCRIBED))
    assert (found.rho, found.n) == (pytest.approx(1), 6)
    assert found.p == pytest.approx(2 / 720)
    falling = values((*DESCRIBED[5::-1], *DESCRIBED[6:]))
    assert paper.with_described_order(falling).rho == pytest.approx(-1)
    # The dense layer below the last convolution, but 0.45 is below the fifth, too.
    found = paper.with_described_order(values(DESCRIBED), with_dense=True)
    assert (found.rho, found.n) == (pytest.approx(1 - 6 * 2 / (7 * 48)), 7)


def test_undefined_layers_are_left_out_of_a_correlation():
    assert paper.correlate([0.1, None, 0.2, 0.3, None], [1, 2, 3, 4, 5]).n == 3
    assert paper.correlate([0.1, None, 0.2], [1, 2, 3]) == paper.Correlation(rho=None, p=None, n=2)
    assert paper.correlate([0.1, 0.1, 0.1], [1, 2, 3]).rho is None


def test_each_two_data_sets_are_compared():
    sets = {name: values(DESCRIBED) for name in paper.PAPER}
    found = paper.agreement(sets)
    assert [(pair.one, pair.other) for pair in found] == [
        ("mnist", "fashion-mnist"), ("mnist", "cifar10"), ("fashion-mnist", "cifar10")
    ]  # fmt: skip
    assert all(pair.correlation.rho == pytest.approx(1) for pair in found)
