"""Memorisation: what the obvious implementation gives, nothing where nothing is held, and the planted layer first."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from cloister import load_dataset, measure
from cloister.target import Target
from tests import reference_exposure

N = 300
#: Until a layer that was drawn anew has learnt what it can.
SETTINGS = {"epochs": 40, "lr": 3e-3, "batch_size": 50, "precision": "float32", "controls": ()}


def fit(model, parameters, pair, epochs=60):
    images, labels = (torch.from_numpy(part) for part in pair)
    optimizer = torch.optim.Adam(parameters, 2e-3)
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(labels))
        for batch in np.array_split(order, len(labels) // 50):
            model.zero_grad()
            functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return model


def layers():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10)
        )


@pytest.fixture(scope="module")
def sets():
    """S, T and U: digits, of which some have a label at random, so that there is something to remember."""
    data, rng = load_dataset("digits"), np.random.default_rng(0)
    labels = data.labels().copy()
    is_noise = rng.random(len(labels)) < 0.3
    labels[is_noise] = rng.integers(0, 10, is_noise.sum())
    images, order = data.images(), rng.permutation(data.n_train)
    return [(images[part], labels[part]) for part in order[: 3 * N].reshape(3, N)]


def target(model, sets, **fields):
    s, t, _ = sets
    known = {"input_shape": (1, 8, 8), "n_classes": 10, "members": s, "nonmembers": t}
    return Target(model=model, name="digits", **known | fields)


@pytest.fixture(scope="module")
def unseen(sets):
    """A base that saw U alone."""
    model = layers()
    return fit(model, model.parameters(), sets[2])


def found(target, **changes):
    return measure(target, **SETTINGS | {"repeats": 2} | changes)


def test_value_is_that_of_the_slow_implementation(sets):
    model = layers()
    some = target(fit(model, model.parameters(), sets[0], 10), sets)
    settings = {"epochs": 2, "lr": 3e-3, "batch_size": 50}
    exposure = measure(some, **settings, repeats=2, precision="float32", controls=(), seed=5)
    images, labels = (torch.from_numpy(np.concatenate(both)) for both in zip(*sets[:2], strict=True))
    for layer in exposure.layers:
        values = [
            reference_exposure.memorisation(
                model, list(layer.parameters), images, labels, N, seed=5, repeat=repeat, **settings
            )
            for repeat in range(2)
        ]
        held_out = [run.held_out.value for run in exposure.runs if run.layer == layer.name and run.fit == "half"]
        assert held_out == pytest.approx(values, abs=1e-12)
        assert layer.memorisation.measured.mean == pytest.approx(np.mean(values), abs=1e-12)


def test_a_base_that_saw_neither_and_layers_drawn_anew_score_nothing(sets, unseen):
    model = layers()
    exposure = found(
        target(fit(model, model.parameters(), sets[0]), sets),
        epochs=20,
        repeats=3,
        controls=("reinitialised", "unseen-base"),
        control=target(unseen, sets, members=sets[2], nonmembers=None),
    )
    for layer in exposure.layers:
        held = layer.memorisation
        assert held.measured.low > 0.05
        assert abs(held.unseen_base.mean) < 0.1
        assert held.unseen_base.low < 0 < held.unseen_base.high
        assert held.reinitialised.mean < 0.05
    assert any("0 of 3 layers of a base that never saw the members" in text for text in exposure.findings)


@pytest.mark.parametrize("planted", ["1", "3", "5"])
def test_a_layer_that_alone_saw_the_members_comes_first(sets, unseen, planted):
    model = copy.deepcopy(unseen)
    fit(model, model.get_submodule(planted).parameters(), sets[0])
    assert found(target(model, sets)).memorisation_ranking.layers[0] == planted


@pytest.fixture(scope="module")
def of_both(sets):
    """A base that saw S and T."""
    model = layers()
    return fit(model, model.parameters(), [np.concatenate(both) for both in zip(*sets[:2], strict=True)])


@pytest.mark.parametrize("planted", ["1", "3", "5"])
def test_a_layer_that_alone_was_fitted_on_members_only_comes_first(sets, of_both, planted):
    model = copy.deepcopy(of_both)
    layer = model.get_submodule(planted)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layer.reset_parameters()
    fit(model, layer.parameters(), sets[0])
    assert found(target(model, sets)).memorisation_ranking.layers[0] == planted
