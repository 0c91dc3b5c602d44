"""What is counted, against a bridge whose clock is known: the arithmetic, not the emulator."""

from __future__ import annotations

import numpy as np
import pytest

from cloister.bench import counts
from cloister.bundle.file import read_bundle
from cloister.bundle.keys import recipients
from cloister.enclave.wire import Command
from tests import oracle
from tests.bundle.sample import images, make_graph, make_sample
from tests.enclave.bridge import Bridge

TICKS = {Command.RUN: 1000, Command.OPEN: 700, Command.OUTSIDE_RUN: 400}
REFUSED_TICKS = 30
INSTRUCTIONS_A_TICK = 16


@pytest.fixture
def open_session(monkeypatch, tmp_path):
    """A counting session with a bundle; its other end says what each call takes."""

    def connect():
        bridge = Bridge(ticks=lambda command, refused: REFUSED_TICKS if refused else TICKS.get(command, 0))
        return bridge.link

    def make(budget_bytes, inside=True):
        sample = make_sample(budget_bytes=budget_bytes, inside=inside)
        path = sample.write(tmp_path / "sample.cloister", recipients(["local"]))
        return counts._CountingSession(read_bundle(path))

    monkeypatch.setattr(counts, "_open_link", connect)
    return make


def test_both_worlds_run_in_the_guest_and_give_the_oracles_bits(open_session):
    x = images(3)
    with open_session(8000) as session:
        np.testing.assert_array_equal(session.run(x), oracle.run(make_graph(0), x)["scores"])


def test_parts_add_up(open_session):
    with open_session(8000) as session:
        found = session.count(images(3), repeats=2)
        opened = list(session._inside.windows.over(session._inside.room_bytes(), resident=False))
    assert found.calls == 1
    assert found.totals == [INSTRUCTIONS_A_TICK * (TICKS[Command.OUTSIDE_RUN] + TICKS[Command.RUN])] * 2
    assert found.crossing == INSTRUCTIONS_A_TICK * REFUSED_TICKS
    assert len(opened) >= 1
    assert found.unsealing == len(opened) * INSTRUCTIONS_A_TICK * (TICKS[Command.OPEN] - REFUSED_TICKS)


def test_nothing_streams_where_everything_stays(open_session):
    with open_session(None) as session:
        assert session.count(images(1), repeats=1).unsealing == 0


def test_everything_outside_crosses_nowhere(open_session):
    with open_session(None, inside=False) as session:
        found = session.count(images(2), repeats=1)
    assert found == counts._Counts([INSTRUCTIONS_A_TICK * 2 * TICKS[Command.OUTSIDE_RUN]], 0, 0, 0)
