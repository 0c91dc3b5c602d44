"""Cutting a graph into stages."""

import itertools

import pytest
from torch import nn

from cloister.compile.capture import capture
from cloister.compile.lower import lower
from cloister.compile.stages import refuse_foreign, split
from tests.models import MODELS, Lambda, build, conv


def graph_of(name):
    model, shape = build(name)
    return lower(capture(model, shape).module)


@pytest.mark.parametrize("name", MODELS)
def test_stages_cover_the_graph_in_an_order_that_can_run(name):
    graph = graph_of(name)
    layers = list(graph.layers())
    for inside in ([], layers, layers[-1:], layers[::2]):
        stages = split(graph, inside)
        done = {graph.input}
        for s in stages:
            assert set(s.stage.inputs) <= done
            made = set()
            for op in s.stage.ops:
                assert set(op.inputs) <= set(s.stage.inputs) | made
                made.add(op.output)
            assert set(s.stage.outputs) <= made
            done |= set(s.stage.outputs)
        assert graph.output in done
        assert sum(len(s.stage.ops) for s in stages) == len(graph.ops)
        assert all(a.world != b.world for a, b in itertools.pairwise(stages))


@pytest.mark.parametrize("name", MODELS)
def test_named_layers_and_what_follows_them_are_inside(name):
    graph = graph_of(name)
    layers = list(graph.layers())
    inside = set(layers[1::2])
    made_inside = set()
    for s in split(graph, inside):
        for op in s.stage.ops:
            if op.layer:
                assert (op.layer in inside) == (s.world == "inside")
            elif set(op.inputs) & made_inside:
                assert s.world == "inside", "a result of the inside left before the operation after it"
            if s.world == "inside":
                made_inside.add(op.output)


def test_nothing_inside_is_one_outside_stage_and_all_inside_is_one_inside_stage():
    graph = graph_of("residual")
    assert [s.world for s in split(graph, [])] == ["outside"]
    assert [s.world for s in split(graph, list(graph.layers()))] == ["inside"]


def test_parts_of_a_concatenation_stay_together():
    graph = graph_of("concat")
    stages = split(graph, ["b"])
    homes = {}
    for number, s in enumerate(stages):
        for op in s.stage.ops:
            assert homes.setdefault(op.output, number) == number


def test_foreign_operation_behind_an_inside_layer_is_refused():
    model = Lambda(lambda m, x: m.b(m.a(x).sigmoid()), a=conv(3, 4), b=conv(4, 4))
    graph = lower(capture(model, (3, 8, 8)).module)
    assert refuse_foreign(graph, ["b"]) == []
    ((where, operator, reason),) = refuse_foreign(graph, ["a"])
    assert (where, operator, reason) == ("(model)", "aten.sigmoid.default", "no such operation inside")


def test_foreign_layer_with_parameters_is_named_and_refused():
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6, 2))
    graph = lower(capture(model, (3, 8)).module)
    assert list(graph.layers()) == ["0", "2"]
    assert [p[0] for p in refuse_foreign(graph, ["0"])] == ["0"]
    assert [s.world for s in split(graph, ["2"])] == ["torch", "outside", "inside"]
