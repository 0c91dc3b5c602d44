"""Plans and crossings as tables, also for models with many layers."""

import msgspec
import pytest

from cloister.bundle.crossing import crossings
from cloister.bundle.file import read_bundle
from cloister.cli import plans
from cloister.planning.plan import BoardPlan, LayerPlan, Plan


def layer(name, reason, *, inside):
    return LayerPlan(
        name=name, op="conv", inside=inside, n_slices=3, weight_bytes=2048, resident_bytes=1024, reason=reason
    )


def make_plan(layers, budget_bytes=65536, lanes=1):
    return Plan(
        inside="x", slicing="auto", bits=8, budget_bytes=budget_bytes, inside_bytes=4096, smallest_budget_bytes=2048,
        seed=0, lanes=lanes, layers=tuple(layers),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def test_plan_groups_layers_by_reason(capsys):
    outer = [layer(f"stem.{i}.conv", "outside: not asked for", inside=False) for i in range(5)]
    inner = [layer(f"tail.{i}", "asked for: tail.*; 2 KiB cut into 3 slices", inside=True) for i in range(2)]
    plans.show_plan("Plan", make_plan([*outer, *inner, layer("fc", "asked for: fc; 2 KiB whole", inside=True)]))
    text = capsys.readouterr().out
    assert "outside, not asked for     5 layers\n" in text
    assert "inside, asked for: tail.*  tail.0, tail.1\n" in text
    assert "inside, asked for: fc      fc\n" in text
    assert "cut into" not in text
    assert text.count("2 KiB") == 8


def test_budget_in_words():
    assert plans.budget_text(make_plan([])) == "none: nothing is inside"
    one = [layer("fc", "", inside=True)]
    assert plans.budget_text(make_plan(one)) == "4 KiB of 64 KiB (it could run in 2 KiB)"
    assert plans.budget_text(make_plan(one, None)) == "4 KiB without a limit (it could run in 2 KiB)"


def test_boards_in_words():
    lacking = BoardPlan(name="rpi3", title="Raspberry", demonstration=("no secure RAM: a", "no secure boot: b"))
    assert plans.board_text(lacking) == "rpi3 — a demonstration: no secure RAM: a; no secure boot: b"
    assert plans.board_text(msgspec.structs.replace(lacking, demonstration=())) == "rpi3 — Raspberry"
    assert plans.board_text(None).startswith("none")


def test_lanes_in_words():
    assert plans.lanes_text(make_plan([])) == "one image"
    assert plans.lanes_text(make_plan([], lanes=4)).startswith("4 images: ")


def test_crossings_of_a_bundle(bundle, plain_bundle):
    with read_bundle(bundle) as opened, read_bundle(plain_bundle) as plain:
        assert crossings(plain.manifest) == ()
        entering, leaving = crossings(opened.manifest)
    assert (entering.direction, entering.dtype, entering.shape, entering.n_bytes) == ("in", "int8", (32, 2, 2), 128)
    assert (leaving.direction, leaving.dtype, leaving.shape, leaving.n_bytes) == ("out", "float32", (10,), 40)
    assert plans.describe_crossing(entering) == "what goes in: int8 32 x 2 x 2, 128 B"
    assert plans.describe_crossing(leaving) == "what comes out: float32 10, 40 B"
    assert msgspec.json.decode(msgspec.json.encode(entering))["n_bytes"] == 128


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "none"),
        (["a"], "a"),
        (["a", "b", "c"], "a, b, c"),
        (["a", "b", "c", "d"], "a … d (4 layers)"),
    ],
)
def test_many_layers_are_named_by_the_first_and_the_last(names, text):
    assert plans.name_layers(names) == text
