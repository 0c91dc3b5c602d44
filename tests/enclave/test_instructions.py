"""Kernels of a smaller machine can be asked for; what is missing is named."""

import warnings

import numpy as np
import pytest

from cloister.bundle.keys import recipients
from cloister.enclave import instructions
from cloister.enclave.instructions import allowed_sets, best_set
from cloister.enclave.session import load
from cloister.errors import EnclaveUnavailable, UserError
from tests import oracle
from tests.bundle.sample import images, make_graph, make_sample

EVERY = ("amx", "avx512", "avxvnni", "avx2", "i8mm", "dot", "neon", "plain")


def here():
    """The sets of this machine."""
    return [name for i, name in enumerate(EVERY) if best_set(1 << i if name != "plain" else 0) == name]


def ask(monkeypatch, wanted):
    monkeypatch.setenv(instructions.VARIABLE, wanted)


def test_plain_is_everywhere_and_the_best_is_the_default():
    assert here()[-1] == "plain"
    assert best_set() == best_set(allowed_sets()) == here()[0]
    assert best_set(0, bits=32) == "plain"
    assert best_set(bits=32) == next(name for name in here() if name in ("avx512", "avx2", "neon", "plain"))


@pytest.mark.parametrize("budget", [None, 8000])
def test_every_set_gives_the_oracles_bits_inside_and_outside(budget, monkeypatch, tmp_path):
    x = images(3)
    path = make_sample(budget_bytes=budget).write(tmp_path / "model.cloister", recipients(["local"]))
    for name in here():
        ask(monkeypatch, f"{name}!")
        assert best_set(allowed_sets()) == name
        with load(path) as session:
            np.testing.assert_array_equal(session.run(x), oracle.run(make_graph(0), x)["scores"])


@pytest.mark.parametrize("name", EVERY)
def test_a_set_that_is_missing_is_named_and_the_best_is_used_unless_forced(name, monkeypatch):
    if name in here():
        monkeypatch.setattr(instructions, "best_set", lambda sets: "plain" if name != "plain" else "avx2")
    instructions._read.cache_clear()
    ask(monkeypatch, name)
    with pytest.warns(UserWarning, match=f"does not have {name}; .* is used"):
        allowed_sets()
    ask(monkeypatch, f"{name}!")
    with pytest.raises(EnclaveUnavailable, match=f"does not have {name}$") as raised:
        allowed_sets()
    assert "leave out the `!`" in raised.value.hint
    instructions._read.cache_clear()


def test_an_unknown_set_is_refused_with_the_known_ones(monkeypatch):
    ask(monkeypatch, "sse9")
    with pytest.raises(UserError, match="no such instruction set") as raised:
        allowed_sets()
    assert "avx2" in raised.value.hint


def test_nothing_is_said_where_nothing_was_asked(monkeypatch):
    ask(monkeypatch, "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert allowed_sets() == instructions._ALL


@pytest.mark.parametrize(
    ("wanted", "march"),
    [
        ("neon", "armv8-a"),
        ("dot!", "armv8.2-a+dotprod"),
        ("i8mm", "armv8.2-a+dotprod+i8mm"),
        ("", None),
        ("avx2", None),
    ],
)
def test_sets_of_arm_are_the_compilers_business(wanted, march, monkeypatch):
    ask(monkeypatch, wanted)
    assert instructions.arm_march() == march
