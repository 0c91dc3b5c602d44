"""The statistics, with clocks and times that are known."""

import itertools

import numpy as np
import pytest

from cloister.bench.timing import median_interval, paired_ratio, time_rounds


class Machine:
    """A clock that runs of known length move on, and that a busy machine slows."""

    def __init__(self, seconds, slowness=None):
        self.now, self.order = 0.0, []
        self.seconds, self.slowness = seconds, slowness or itertools.repeat(1.0)

    def clock(self):
        return self.now

    def runs(self):
        return {name: lambda name=name: self.run(name) for name in self.seconds}

    def run(self, name):
        self.order.append(name)
        self.now += self.seconds[name] * next(self.slowness)

    def time(self, rounds, seed=0):
        return time_rounds(self.runs(), rounds=rounds, seed=seed, clock=self.clock)


def test_times_are_those_of_the_clock():
    seconds = Machine({"fast": 0.001, "slow": 0.004}).time(rounds=4)
    np.testing.assert_allclose(seconds["fast"], [0.001] * 4)
    np.testing.assert_allclose(seconds["slow"], [0.004] * 4)


def test_a_ratio_does_not_depend_on_how_fast_the_machine_is():
    """The machine gets three times slower on the way: means of times would tell nothing."""
    slowness = (1 + at / 300 for at in itertools.count())
    seconds = Machine({"one": 0.002, "other": 0.006}, slowness).time(rounds=40)
    assert seconds["one"].max() > 1.5 * seconds["one"].min()
    found = paired_ratio(seconds["other"], seconds["one"])
    assert found.ratio == pytest.approx(3, rel=0.05)
    assert found.low <= found.ratio <= found.high


def test_a_disturbed_run_is_not_the_turn():
    """Every tenth run takes a hundred times as long, as when another process gets the core."""
    slowness = (100.0 if at % 10 == 9 else 1.0 for at in itertools.count())
    seconds = Machine({"one": 0.001}, slowness).time(rounds=3)
    np.testing.assert_allclose(seconds["one"], [0.001] * 3)


def test_all_have_one_turn_in_each_round_in_an_order_that_changes():
    machine = Machine({"a": 0.02, "b": 0.02, "c": 0.02})
    machine.time(rounds=8)
    turns = machine.order[3 * 4 :: 4]  # a turn is four runs; the first three turns find the counts
    rounds = [tuple(turns[at : at + 3]) for at in range(0, len(turns), 3)]
    assert len(rounds) == 8
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 2


def test_short_runs_get_more_of_them():
    machine = Machine({"short": 0.0005, "long": 0.1})
    machine.time(rounds=1)
    timed = machine.order[8:]
    assert timed.count("short") == 1 + 40
    assert timed.count("long") == 1 + 3


def test_the_same_seed_gives_the_same_order():
    orders = []
    for seed in (1, 1, 2):
        machine = Machine({"a": 0.02, "b": 0.02, "c": 0.02})
        machine.time(rounds=6, seed=seed)
        orders.append(machine.order)
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(
    ("n", "ends"), [(1, (0, 0)), (5, (0, 4)), (6, (0, 5)), (9, (1, 7)), (15, (3, 11)), (25, (7, 17))]
)
def test_interval_is_that_of_the_sign_test(n, ends):
    """Ranks from tables of the sign test: for 15 values the 4th and the 12th, for 25 the 8th and the 18th."""
    values = np.random.default_rng(n).permutation(n).astype(float)
    assert median_interval(values) == ends


def test_interval_holds_the_true_median_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        low, high = median_interval(rng.lognormal(0, 1, 15))
        held += low <= 1 <= high
    assert held / 400 > 0.94


def test_ratios_are_paired():
    """Round by round the one takes twice as long; the ratio of any other pairs would spread."""
    against = np.array([1.0, 10.0, 100.0, 2.0, 5.0, 50.0])
    assert paired_ratio(2 * against, against) == (2.0, 2.0, 2.0)
