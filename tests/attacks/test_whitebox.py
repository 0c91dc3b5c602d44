"""Per-sample features against a loop, the gradient-based attack, and its surrogate."""

import copy
import dataclasses
import functools

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional

from cloister.attacks import whitebox
from cloister.attacks.observations import Device
from cloister.attacks.per_sample import Features, known_gradients, per_sample, per_sample_gradients
from cloister.attacks.surrogate import fit_surrogate
from cloister.attacks.whitebox import attack, attack_features, split_known
from cloister.errors import DataError, InputError, TargetError, UserError
from tests.attacks import cases

# --- features ---


def looped(model, images, labels):
    """Gradients of each image's own loss, one backward pass for each."""
    rows = []
    for image, label in zip(images, labels, strict=True):
        loss = functional.cross_entropy(model(image[None]), label[None])
        rows.append(torch.autograd.grad(loss, list(model.parameters())))
    return {name: torch.stack(found) for (name, _), *found in zip(model.named_parameters(), *rows, strict=True)}


@pytest.mark.parametrize("inside", ["none", "last:2", "3", "0,6"])
def test_gradients_are_those_of_a_loop(inside):
    """Also where they come through the inside: of that only what came back is used."""
    lowered, model = cases.small()
    device = Device(lowered, inside)
    seen = device.observe(cases.pair(7), training=True)
    names = known_gradients(device.view, seen)
    assert set(names) == set(device.view.parameters)
    gradients, _ = per_sample_gradients(device.view, seen, names)
    expected = looped(model, seen.images, seen.labels)
    for name, found in gradients.items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-6)


def test_gradients_of_folded_batch_norms_are_those_of_a_loop():
    lowered = cases.model_of("batch_norms", 32)
    device = Device(lowered, "last:1")
    seen = device.observe(cases.pair(5, lowered.captured.input_shape), training=True)
    gradients, _ = per_sample_gradients(device.view, seen, device.view.parameters)
    whole = Device(lowered, "none").view
    parameters = {name: one.clone().requires_grad_() for name, one in whole.parameters.items()}
    for at in range(5):
        scores = whole.run(seen.images[at : at + 1], None, parameters).values[whole.output]
        loss = functional.cross_entropy(scores, seen.labels[at : at + 1])
        for name, found in gradients.items():
            (expected,) = torch.autograd.grad(loss, parameters[name], retain_graph=True)
            torch.testing.assert_close(found[at], expected, rtol=1e-4, atol=1e-6)


def test_quantized_layers_have_gradients():
    device = Device(cases.small(bits=8)[0], "last:2")
    features = per_sample(device.view, device.observe(cases.pair(5), training=True), gradients="full")
    assert features.components["gradient"].isfinite().all()
    assert features.components["gradient"].std(0).max() > 0


def test_chunks_change_nothing():
    device = Device(cases.small()[0], "last:2")
    seen = device.observe(cases.pair(9), training=True)
    one, many = (per_sample(device.view, seen, chunk=chunk, gradients="full") for chunk in (9, 2))
    for name, values in one.components.items():
        torch.testing.assert_close(values, many.components[name], rtol=1e-4, atol=1e-5)
    assert one.components["gradient"].shape[1] == sum(12 + p.numel() for p in device.view.parameters.values())


@pytest.mark.parametrize(
    ("inside", "training", "known"),
    [
        ("last:2", True, {"0", "3", "6"}),
        ("last:2", False, set()),
        ("3", False, {"6", "8", "10"}),  # behind what came out, the true loss is at hand
        ("none", False, {"0", "3", "6", "8", "10"}),
        ("all", True, set()),
    ],
)
def test_only_gradients_that_can_be_known_are_used(inside, training, known):
    device = Device(cases.small()[0], inside)
    seen = device.observe(cases.pair(3), training=training)
    found = known_gradients(device.view, seen)
    assert {name.partition(".")[0] for name in found} == known
    components = per_sample(device.view, seen).components
    assert ("gradient" in components) == bool(known)


@pytest.mark.parametrize(("release", "components"), [("labels", {"loss", "output"}), ("nothing", set())])
def test_what_is_not_released_is_no_feature(release, components):
    device = Device(cases.small()[0], "last:1")
    seen = device.observe(cases.pair(4), release=release)
    assert set(per_sample(device.view, seen).components) == {"activation", "label"} | components


def test_layers_behind_the_inside_need_what_came_out_of_it():
    """Whoever only has outputs, for example of a session, sees what lies before the inside."""
    lowered, _ = cases.small()
    for inside, is_refused in (("3", True), ("last:2", False)):
        device = Device(lowered, inside)
        seen = dataclasses.replace(device.observe(cases.pair(4)), values={})
        if is_refused:
            with pytest.raises(InputError, match="came out of the inside"):
                per_sample(device.view, seen)
        else:
            assert {"0", "3", "6"} == set(per_sample(device.view, seen).sees["activation"])


# --- the attack ---


@functools.cache
def memorised():
    """A model that learnt random labels of 80 images by heart, and 80 others."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 5))
    images, labels = cases.pair(160, (20,))
    x, y = torch.from_numpy(images[:80]), torch.from_numpy(labels[:80])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert (model(x).argmax(1) == y).all()
    return model.eval(), cases.lowered_of(model.eval(), (20,)), (images, labels)


IS_MEMBER = np.arange(160) < 80


@functools.cache
def observed(inside="last:1"):
    _, lowered, pair = memorised()
    device = Device(lowered, inside)
    seen = device.observe(pair, release="nothing", training=True)
    known = split_known(IS_MEMBER, pair[1])
    return device, seen, known, attack(device.view, seen, IS_MEMBER, known, seed=1)


def test_true_gradients_of_visible_layers_tell_members():
    _, _, known, found = observed()
    scores, asked = found.arrays()
    assert scores.dtype == np.float64
    assert not set(asked) & set(known)
    assert len(asked) == 80
    assert roc_auc_score(IS_MEMBER[asked], scores) > 0.9
    assert found.attacker == "observed"
    assert found.sees["gradient"] == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert "output" not in found.sees


def test_scores_do_not_depend_on_hidden_weights():
    model, lowered, pair = memorised()
    known = split_known(IS_MEMBER, pair[1])
    other = cases.lowered_of(cases.scaled(copy.deepcopy(model), 2, 4, 8.0), (20,))
    for training in (True, False):
        results = []
        for one in (lowered, other):
            device = Device(one, "2,4")
            seen = device.observe(pair, training=training)
            results.append(attack(device.view, seen, IS_MEMBER, known))
        assert results[0].scores == results[1].scores  # bit by bit
        assert results[0] == results[1]


def test_the_same_call_gives_the_same_scores_and_what_is_kept_is_used(tmp_path, monkeypatch):
    device, seen, known, found = observed()
    again = attack(device.view, seen, IS_MEMBER, known, seed=1, state=tmp_path)
    assert again == found
    monkeypatch.setattr(whitebox, "_fit", None)
    assert attack(device.view, seen, IS_MEMBER, known, seed=1, state=tmp_path) == found
    (path,) = tmp_path.iterdir()
    path.write_text("{")
    with pytest.raises(TypeError):  # what is damaged is done again
        attack(device.view, seen, IS_MEMBER, known, seed=1, state=tmp_path)


def interval(truth, scores, n=400):
    """95 % of the area under the curve, by bootstrap."""
    rng = np.random.default_rng(0)
    members, others = np.flatnonzero(truth), np.flatnonzero(~truth)
    drawn = [np.concatenate([rng.choice(side, len(side)) for side in (members, others)]) for _ in range(n)]
    return np.quantile([roc_auc_score(truth[at], scores[at]) for at in drawn], [0.025, 0.975])


def test_of_shuffled_memberships_nothing_is_found():
    device, seen, *_ = observed()
    shuffled = np.random.default_rng(5).permutation(IS_MEMBER)
    found = attack(device.view, seen, shuffled, split_known(shuffled, seen.labels.numpy()))
    scores, asked = found.arrays()
    low, high = interval(shuffled[asked], scores)
    assert low < 0.5 < high


def test_an_attack_model_that_did_not_train_has_no_scores():
    same = Features(components={"label": torch.zeros(160, 5), "loss": torch.ones(160, 1)}, sees={})
    found = attack_features(same, IS_MEMBER, split_known(IS_MEMBER, np.zeros(160, np.int64)))
    assert found.scores is None
    assert found.starts == 3
    assert "same score" in found.not_trained or "guessing" in found.not_trained
    with pytest.raises(InputError, match="did not train"):
        found.arrays()


def test_an_attack_model_that_did_not_train_is_started_again(monkeypatch):
    device, seen, known, _ = observed()
    original, starts = whitebox._why_not_trained, []

    def first_fails(network, learnt):
        starts.append(network)
        return "dead" if len(starts) == 1 else original(network, learnt)

    monkeypatch.setattr(whitebox, "_why_not_trained", first_fails)
    found = attack(device.view, seen, IS_MEMBER, known, seed=2)
    assert found.starts == 2
    assert found.scores is not None


def test_with_nothing_visible_it_says_so_and_attacks_the_outputs():
    _, lowered, pair = memorised()
    device = Device(lowered, "all")
    known = split_known(IS_MEMBER, pair[1])
    found = attack(device.view, device.observe(pair, training=True), IS_MEMBER, known)
    assert "nothing is visible: this is an attack on outputs" in found.notes
    assert set(found.sees) == {"label", "loss", "output"}
    scores, asked = found.arrays()
    assert roc_auc_score(IS_MEMBER[asked], scores) > 0.9
    silent = attack(device.view, device.observe(pair, release="nothing"), IS_MEMBER, known)
    assert "sees only the label" in silent.notes[0]


def test_bad_input_is_named():
    device, seen, known, _ = observed()
    with pytest.raises(DataError, match="at least 10 known members"):
        attack(device.view, seen, IS_MEMBER, known[:45])
    with pytest.raises(InputError, match="each once"):
        attack(device.view, seen, IS_MEMBER, np.concatenate([known, known[:1]]))
    with pytest.raises(DataError, match="to ask about"):
        attack(device.view, seen, IS_MEMBER, np.arange(160))
    with pytest.raises(InputError, match="members"):
        attack(device.view, seen, np.ones(160, bool), known)
    broken = Features(components={"label": torch.full((160, 5), torch.nan)}, sees={})
    with pytest.raises(InputError, match="`label`: expected finite"):
        attack_features(broken, IS_MEMBER, known)


def test_what_is_known_is_the_same_share_of_each_class():
    rng = np.random.default_rng(0)
    is_member, labels = rng.random(400) < 0.5, rng.integers(0, 5, 400)
    known = split_known(is_member, labels, share=0.5, seed=3)
    for side in (True, False):
        for label in range(5):
            of_kind = np.flatnonzero((is_member == side) & (labels == label))
            assert abs(len(np.intersect1d(of_kind, known)) - len(of_kind) / 2) <= 1
    assert not np.array_equal(known, split_known(is_member, labels, seed=4))


# --- surrogates ---


@functools.cache
def surrogate(release="scores"):
    """The last two layers, found again by queries; the attacker's own model has fresh weights."""
    _, lowered, _ = memorised()
    device = Device(lowered, "last:2")
    queries = device.observe(cases.pair(300, (20,), seed=7), release=release)
    return device, queries, fit_surrogate(device.view, fresh(), queries, lr=1e-2, max_epochs=400)


@functools.cache
def fresh():
    with torch.random.fork_rng():
        torch.manual_seed(9)
        model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 5))
    return cases.lowered_of(model.eval(), (20,))


def test_a_surrogate_converges_to_the_answers():
    _, _, found = surrogate()
    assert found.fidelity.converged
    assert found.fidelity.queries == 270
    assert found.fidelity.divergence < 0.05
    assert found.fidelity.agreement > 0.97
    assert found.fidelity.agreement_held_out > 0.5
    _, _, of_labels = surrogate("labels")
    assert of_labels.fidelity.agreement > 0.97


def test_an_attack_through_a_surrogate_uses_its_gradients_and_not_those_that_came_back():
    _, _, pair = memorised()
    device, _, stand_in = surrogate()
    known = split_known(IS_MEMBER, pair[1])
    seen = device.observe(pair)
    found = attack(device.view, seen, IS_MEMBER, known, surrogate=stand_in)
    assert found.attacker == "surrogate"
    assert "surrogate.2.weight" in found.sees["gradient"]
    assert found.fidelity == stand_in.fidelity
    scores, asked = found.arrays()
    assert roc_auc_score(IS_MEMBER[asked], scores) > 0.9
    watched = dataclasses.replace(seen, gradients={name: one + 1 for name, one in seen.values.items()})
    assert attack(device.view, watched, IS_MEMBER, known, surrogate=stand_in).scores == found.scores


def test_a_surrogate_that_has_not_converged_is_said_to(tmp_path):
    _, _, pair = memorised()
    device, queries, _ = surrogate()
    short = fit_surrogate(device.view, fresh(), queries, max_epochs=1, state=tmp_path)
    assert not short.fidelity.converged
    kept = fit_surrogate(device.view, fresh(), queries, max_epochs=1, state=tmp_path)
    assert kept.fidelity == short.fidelity
    assert all(torch.equal(one, kept.parameters[name]) for name, one in short.parameters.items())
    found = attack(device.view, device.observe(pair), IS_MEMBER, split_known(IS_MEMBER, pair[1]), surrogate=short)
    assert "had not converged" in found.notes[0]


def test_a_surrogate_stands_for_quantized_layers_too():
    lowered, _ = cases.small(bits=8)
    device = Device(lowered, "last:3")
    own, _ = cases.small(seed=5)
    found = fit_surrogate(device.view, own, device.observe(cases.pair(40)), max_epochs=2)
    features = per_sample(device.view, device.observe(cases.pair(6)), surrogate=found)
    assert features.components["gradient"].isfinite().all()
    assert any(name.startswith("0.") for name in features.sees["gradient"])


def test_what_a_surrogate_cannot_be_made_of_is_named():
    device, queries, _ = surrogate()
    with pytest.raises(DataError, match="nothing is released"):
        fit_surrogate(device.view, fresh(), dataclasses.replace(queries, released=None))
    with pytest.raises(DataError, match="at least 10 queries"):
        fit_surrogate(device.view, fresh(), queries.take(slice(0, 9)))
    with pytest.raises(UserError, match="nothing is inside"):
        fit_surrogate(Device(fresh(), "none").view, fresh(), queries)
    wider = cases.lowered_of(
        nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 6)).eval(), (20,)
    )
    with pytest.raises(TargetError, match="expected stages of shapes"):
        fit_surrogate(device.view, wider, queries)
