"""`measure` is what the paper's equations say, resumes to the bit, finds a planted layer, and names what is wrong."""

import dataclasses
import os
import signal
import subprocess
import sys

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import cloister
from cloister import Exposure, measure
from cloister.checkpoint import Checkpoint
from cloister.errors import DataError, TargetError, UnsupportedModel, UserError
from cloister.target import Target
from tests import reference_exposure
from tests.exposure import cases

#: Few and short fine-tunings; without controls unless a test is about them.
QUICK = {"epochs": 4, "repeats": 2, "lr": 1e-2, "batch_size": 20, "precision": "float32", "controls": ()}
CHECKPOINT = Checkpoint(
    model="small", input_shape=(6,), n_classes=5, seed=1, n_members=40, data="random", data_sha256="", n_epochs=3,
    learning_rate=1e-2, batch_size=20, precision="float32", train_accuracy=1.0, test_accuracy=0.5,
)  # fmt: skip


def without_seconds(exposure):
    runs = tuple(msgspec.structs.replace(run, seconds=0.0) for run in exposure.runs)
    return msgspec.structs.replace(exposure, seconds=0.0, runs=runs)


def fit(model, parameters, pairs, steps):
    """Fit some parameters to all these images."""
    images = torch.from_numpy(np.concatenate([x for x, _ in pairs]))
    labels = torch.from_numpy(np.concatenate([y for _, y in pairs]))
    optimizer = torch.optim.Adam(parameters, 1e-2)
    for _ in range(steps):
        model.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


def overfitted(**fields):
    """Three linear layers that have learnt the members by heart."""
    target = cases.target(**fields)
    fit(target.model, list(target.model.parameters()), [target.members], 200)
    return target


@pytest.fixture(scope="module")
def target():
    return overfitted()


@pytest.fixture(scope="module")
def measured(target):
    return measure(target, **QUICK)


class At:
    """Progress that does something at one step, and counts."""

    def __init__(self, at=None, action=None):
        self.at, self.action, self.calls = at, action, []

    def update(self, done, total, text):
        self.calls.append((done, total, text))
        if done == self.at:
            self.action()


def interrupt():
    raise KeyboardInterrupt


# --- what it gives ---


def test_exposure_is_the_equations_of_the_slow_implementation(target, measured):
    """Equations 1 to 4, from readings of the reference."""
    images = torch.from_numpy(np.concatenate([target.members[0], target.nonmembers[0]]))
    labels = torch.from_numpy(np.concatenate([target.members[1], target.nonmembers[1]]))
    epsilons = {}
    for which in ("p", "r"):
        for repeat in range(2):
            _, readings = reference_exposure.fine_tune(
                target.model, ["2.weight", "2.bias"], images, labels, 40, fit=which, epochs=4, lr=1e-2,
                batch_size=20, seed=0, repeat=repeat, precision="float32",
            )  # fmt: skip
            epsilons[which, repeat] = readings[-1][1] - readings[-1][0]
    (layer,) = [layer for layer in measured.layers if layer.name == "2"]
    found = layer.measured.by_loss
    values = [(epsilons["p", i] - epsilons["r", i]) / epsilons["p", i] for i in range(2)]
    assert found.p.mean == pytest.approx((epsilons["p", 0] + epsilons["p", 1]) / 2, rel=1e-12)
    assert found.r.mean == pytest.approx((epsilons["r", 0] + epsilons["r", 1]) / 2, rel=1e-12)
    assert found.exposure.mean == pytest.approx(np.mean(values), rel=1e-12)


def test_document_has_all_that_it_was_made_from(target, measured):
    assert [layer.name for layer in measured.layers] == ["0", "2", "4"]
    assert [layer.n_parameters for layer in measured.layers] == [84, 104, 45]
    assert [layer.depth for layer in measured.layers] == [0, 1, 2]
    assert [point.epoch for point in measured.layers[0].curve] == [1, 2]
    assert (measured.n_members, measured.n_nonmembers, measured.n_unseen) == (40, 40, None)
    assert measured.base.accuracy_members == 1.0
    assert measured.base.epsilon > 1
    assert len(measured.runs) == 3 * 2 * 3
    assert all(len(run.readings) == 4 for run in measured.runs)  # before, and after epochs 1, 2 and 4
    for layer in measured.layers:
        for ratio in (layer.measured.by_loss, layer.measured.by_accuracy):
            assert ratio.exposure.low <= ratio.exposure.mean <= ratio.exposure.high
            assert ratio.p.mean > ratio.r.mean
        assert layer.reinitialised is None
        assert layer.unseen_base is None
    assert measured.warnings == ()
    assert msgspec.json.decode(msgspec.json.encode(measured), type=Exposure) == measured


def test_equal_steps_are_half_the_epochs_of_sets_of_one_size(measured):
    for layer in measured.layers:
        (halfway,) = [point for point in layer.curve if point.epoch == 2]
        assert layer.equal_steps.by_loss.r == halfway.comparison.by_loss.r
        assert layer.equal_steps.by_loss.p == layer.measured.by_loss.p


def test_the_same_call_gives_the_same_and_another_seed_does_not(target, measured):
    assert without_seconds(measure(target, **QUICK)) == without_seconds(measured)
    other = measure(target, **QUICK, seed=1)
    assert other.layers != measured.layers


def test_nothing_else_changes(target):
    before = {name: tensor.clone() for name, tensor in target.model.state_dict().items()}
    state, n_threads, was_training = torch.get_rng_state(), torch.get_num_threads(), target.model.training
    measure(target, **QUICK | {"controls": ("reinitialised",), "repeats": 1}, n_threads=1)
    assert torch.equal(state, torch.get_rng_state())
    assert (torch.get_num_threads(), target.model.training) == (n_threads, was_training)
    assert all(torch.equal(before[name], tensor) for name, tensor in target.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in target.model.parameters())


def test_samples_are_drawn_from_both(target, measured):
    found = measure(target, **QUICK | {"repeats": 1}, n_samples=30)
    assert (found.n_members, found.n_nonmembers) == (30, 30)
    assert found.members_sha256 != measured.members_sha256
    assert "a single repeat has no interval" in found.warnings
    assert found.layers[0].measured.by_loss.exposure.low is None


def test_groups_are_measured_as_one_layer(target):
    found = measure(target, **QUICK | {"repeats": 1}, groups={"both": ["2.*", "4.*"]})
    assert [(layer.name, layer.n_parameters) for layer in found.layers] == [("both", 149)]


def test_exported_program_is_measured_as_its_module(target, measured):
    program = torch.export.export(target.model, (torch.zeros(2, 6),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    found = measure(dataclasses.replace(target, model=program), **QUICK | {"controls": ("unseen-base",)})
    assert found.layers == measured.layers
    assert any("is left out" in text for text in found.warnings)


def test_progress_counts_every_epoch(target):
    progress = At()
    measure(target, **QUICK | {"repeats": 1}, progress=progress)
    assert [(done, total) for done, total, _ in progress.calls] == [(i, 36) for i in range(1, 37)]
    assert progress.calls[0][2] == "0, target, repeat 1 of 1, M_p"


def with_planted(name):
    """A network that has learnt members and non-members by heart, but one layer, which was fitted on members alone."""
    members, nonmembers = cases.pair((16,), 60, 0), cases.pair((16,), 60, 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 5))
        fit(model, list(model.parameters()), [members, nonmembers], 150)
        layer = model.get_submodule(name)
        layer.reset_parameters()
    fit(model, list(layer.parameters()), [members], 150)
    return Target(model=model, name="planted", input_shape=(16,), members=members, nonmembers=nonmembers)


@pytest.mark.parametrize("planted", ["0", "2"])
def test_a_layer_that_alone_was_fitted_on_members_only_comes_first(planted):
    found = measure(with_planted(planted), **QUICK | {"epochs": 2})
    assert found.ranking.layers[0] == planted
    assert found.base.epsilon > 1


def test_planted_in_the_last_layer_there_is_hardly_a_gap():
    assert measure(with_planted("4"), **QUICK | {"epochs": 1, "repeats": 1}).base.epsilon < 0.2


# --- controls ---


def test_reinitialised_layers_forget(target):
    found = measure(target, **QUICK | {"controls": ("reinitialised",)})
    starts = {run.layer: run.readings[0] for run in found.runs if (run.variant, run.fit) == ("reinitialised", "p")}
    assert len(starts) == 3
    assert all(one.accuracy_members < 0.7 for one in starts.values())
    assert all(layer.reinitialised is not None for layer in found.layers)
    of_first = [run for run in found.runs if (run.variant, run.layer) == ("reinitialised", "0")]
    both = [run.readings[0] for run in of_first if run.fit in ("p", "r")]
    assert both[0] == both[1]  # M_p and M_r begin with the same weights …
    assert both[0] != both[2]  # … and repeats with others


def test_control_base_is_trained_on_what_is_in_neither_set(tmp_path):
    target = overfitted(n_nonmembers=85, checkpoint=CHECKPOINT)
    settings = QUICK | {"controls": ("unseen-base",), "repeats": 1}
    found = measure(target, **settings, state=tmp_path)
    assert found.n_unseen == 40
    assert found.unseen_base is not None
    assert found.unseen_base.accuracy_members < 0.7 < found.base.accuracy_members
    assert all(layer.unseen_base is not None for layer in found.layers)
    assert found.warnings == ("a single repeat has no interval",)
    assert len(list(tmp_path.glob("control-*.safetensors"))) == 1
    progress = At()
    assert measure(target, **settings, state=tmp_path, progress=progress) == found
    assert progress.calls == []  # neither trained nor tuned again


def test_interrupted_training_of_the_control_base_goes_on(tmp_path):
    target = overfitted(n_nonmembers=80, checkpoint=CHECKPOINT)
    settings = QUICK | {"controls": ("unseen-base",), "epochs": 1, "repeats": 1}
    with pytest.raises(KeyboardInterrupt):
        measure(target, **settings, state=tmp_path, progress=At(3, interrupt))
    assert [path.suffix for path in tmp_path.iterdir()] == [".resume"]
    progress = At()
    found = measure(target, **settings, state=tmp_path, progress=progress)
    assert progress.calls[0][:2] == (3, 6)  # the second epoch's first step
    assert "control base, epoch 2/3" in progress.calls[0][2]
    assert without_seconds(found) == without_seconds(measure(target, **settings))


def test_control_base_may_be_given(target):
    given = cases.target(members=cases.pair((6,), 40, 7), nonmembers=None)
    settings = QUICK | {"controls": ("unseen-base",), "repeats": 1}
    found = measure(target, **settings, control=given)
    assert found.n_unseen is None
    assert found.unseen_base.epsilon != found.base.epsilon
    unknown = measure(target, **settings, control=dataclasses.replace(given, members=None))
    assert "nothing tells what the control base was trained on" in unknown.warnings


def test_control_base_is_trained_on_what_is_given():
    target = overfitted(checkpoint=CHECKPOINT)
    settings = QUICK | {"controls": ("unseen-base",), "repeats": 1}
    found = measure(target, **settings, control=cases.pair((6,), 30, 7))
    assert found.n_unseen == 30
    assert any("on 30 images, the target on 40" in text for text in found.warnings)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "expected 40 more non-members"),
        ({"n_nonmembers": 79, "checkpoint": CHECKPOINT}, "but 39 are left"),
        ({"n_nonmembers": 80}, "nothing tells how the target was trained"),
    ],
)
def test_control_base_that_cannot_be_made_is_left_out_with_a_warning(fields, why):
    found = measure(cases.target(**fields), **QUICK | {"controls": ("unseen-base",), "epochs": 1, "repeats": 1})
    assert found.unseen_base is None
    assert any("left out" in text and why in text for text in found.warnings)


def test_control_of_the_same_images_is_refused(target):
    settings = QUICK | {"controls": ("unseen-base",)}
    with pytest.raises(DataError, match="neither S nor T, but 40 of 40"):
        measure(target, **settings, control=target.members)
    with pytest.raises(DataError, match="40 of 40"):
        measure(target, **settings, control=target)
    other = cases.target(model=nn.Linear(6, 5), members=cases.pair((6,), 40, 7))
    with pytest.raises(TargetError, match="expected the target's layers 0, 2, 4, but it has weight"):
        measure(target, **settings, control=other)
    with pytest.raises(TargetError, match="input shape"):
        measure(
            target, **settings, control=dataclasses.replace(target, input_shape=(7,), members=None, nonmembers=None)
        )


# --- interruptions ---


@pytest.mark.parametrize("at", [4, 5, 17])
def test_interrupted_measure_goes_on_and_ends_the_same(target, measured, tmp_path, at):
    with pytest.raises(KeyboardInterrupt):
        measure(target, **QUICK, state=tmp_path, progress=At(at, interrupt))
    n_done = (at - 1) // 4  # the unit that is told of last is not written yet
    assert len(list(tmp_path.glob("*.json"))) == n_done
    progress = At()
    found = measure(target, **QUICK, state=tmp_path, progress=progress)
    assert without_seconds(found) == without_seconds(measured)
    assert len(progress.calls) == (18 - n_done) * 4


def test_killed_measure_goes_on_and_ends_the_same(tmp_path):
    code = """
import os, signal, sys
from cloister import measure
from tests.exposure import test_measure as t
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
measure(t.overfitted(), **t.QUICK, state=sys.argv[1], progress=t.At(11, kill))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    finished = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=False)
    assert finished.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*.json"))) == 2
    progress = At()
    found = measure(overfitted(), **QUICK, state=tmp_path, progress=progress)
    assert len(progress.calls) == 64
    assert without_seconds(found) == without_seconds(measure(overfitted(), **QUICK))


def test_finished_units_serve_more_repeats_and_nothing_else(target, tmp_path):
    measure(target, **QUICK | {"repeats": 1}, state=tmp_path)
    progress = At()
    measure(target, **QUICK, state=tmp_path, progress=progress)
    assert len(progress.calls) == 36  # the second repeat alone
    for change in ({"lr": 2e-2}, {"seed": 9}, {"n_samples": 39}):
        again = At()
        settings = QUICK | {"repeats": 1} | change
        measure(target, **settings, state=tmp_path, progress=again)
        assert len(again.calls) == 9 * settings["epochs"], change


def test_damaged_units_are_done_again(target, measured, tmp_path):
    measure(target, **QUICK, state=tmp_path)
    first, second, third, *_ = sorted(tmp_path.glob("*.json"))
    first.write_bytes(first.read_bytes()[:50])
    second.write_bytes(third.read_bytes())  # another unit's
    progress = At()
    assert without_seconds(measure(target, **QUICK, state=tmp_path, progress=progress)) == without_seconds(measured)
    assert len(progress.calls) == 8


def test_state_that_is_no_folder_is_refused(target, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        measure(target, **QUICK, state=tmp_path / "file")


# --- bad input ---


@pytest.mark.parametrize(("field", "what"), [("members", "no members"), ("nonmembers", "no non-members")])
def test_missing_sets_are_refused(target, field, what):
    with pytest.raises(DataError, match=what) as caught:
        measure(dataclasses.replace(target, **{field: None}), **QUICK)
    assert "cloister train" in caught.value.hint


def test_members_for_non_members_are_refused(target):
    with pytest.raises(DataError, match="all 40 are"):
        measure(dataclasses.replace(target, nonmembers=target.members), **QUICK)


def test_some_members_among_non_members_are_left_out_with_a_warning(target):
    images, labels = (a.copy() for a in target.nonmembers)
    images[:3] = target.members[0][5]
    found = measure(dataclasses.replace(target, nonmembers=(images, labels)), **QUICK | {"repeats": 1})
    assert found.n_nonmembers == found.n_members == 37
    assert any("3 non-members have the image of a member" in text for text in found.warnings)


@pytest.mark.parametrize("n_samples", [1, 41, 0, -3])
def test_too_few_samples_are_refused(target, n_samples):
    with pytest.raises(DataError, match="members and as many non-members"):
        measure(target, **QUICK, n_samples=n_samples)


@pytest.mark.parametrize("label", [-1, 5, 2**40])
def test_labels_that_are_no_classes_are_refused(target, label):
    images, labels = target.nonmembers
    labels = labels.copy()
    labels[7] = label
    with pytest.raises(DataError, match=r"labels in \[0, 4\]"):
        measure(dataclasses.replace(target, nonmembers=(images, labels)), **QUICK)


def test_weights_that_are_not_finite_are_refused():
    target = cases.target()
    with torch.no_grad():
        target.model[2].weight[0, 0] = float("nan")
    with pytest.raises(TargetError, match="finite loss"):
        measure(target, **QUICK)


def test_loss_that_is_not_finite_names_layer_and_epoch(target):
    with pytest.raises(UserError, match=r"layer `0`, repeat 1: the loss is not finite after epoch 1") as caught:
        measure(target, **QUICK | {"lr": 1e38})
    assert "learning rate" in caught.value.hint


def test_layer_without_gradient_is_undefined_with_a_warning(target):
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))
    with torch.no_grad():
        model[2].bias.fill_(-1e3)  # nothing ever passes the second ReLU
    found = measure(dataclasses.replace(target, model=model), **QUICK)
    assert any("no gradient reaches `0`, `2`" in text for text in found.warnings)
    for layer in found.layers[:2]:
        assert layer.measured.by_loss.exposure is None
        assert layer.measured.by_loss.undefined == "no gradient reaches this layer"


def test_untrained_model_is_undefined_with_a_warning():
    found = measure(cases.target(), **QUICK | {"lr": 1e-4, "epochs": 1})
    assert all(layer.measured.by_loss.exposure is None for layer in found.layers)
    assert found.ranking.layers == ()
    assert all(layer.memorisation.measured.low < 0 < layer.memorisation.measured.high for layer in found.layers)
    assert [text for text in found.findings if "memorisation" not in text] == []
    assert any("no memory of its members" in text for text in found.warnings)


def test_model_that_has_not_converged_gets_a_warning():
    found = measure(cases.target(), **QUICK | {"epochs": 10, "repeats": 1, "lr": 0.1})
    assert any("had not converged" in text for text in found.warnings)


def test_outputs_that_are_no_logits_are_refused():
    target = cases.target(model=nn.Linear(6, 5), shape=(4, 6))
    with pytest.raises(TargetError, match="logits"):
        measure(target, **QUICK)


def test_model_that_mixes_images_is_refused(target):
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 5))
    with pytest.raises(UnsupportedModel, match="mixes images"):
        measure(dataclasses.replace(target, model=model), **QUICK)


def test_model_that_cannot_be_exported_is_refused(target):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 5)

        def forward(self, x):
            return self.fc(x) if x.sum() > 0 else self.fc(-x)

    with pytest.raises(UnsupportedModel, match="cannot capture"):
        measure(dataclasses.replace(target, model=Branches()), **QUICK)


@pytest.mark.parametrize(
    "change",
    [{"epochs": 0}, {"repeats": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"batch_size": 1}, {"seed": -1},
     {"cache_bytes": -1}, {"controls": ("nonsense",)}],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range_are_refused(target, change):
    with pytest.raises(UserError, match="expected"):
        measure(target, **QUICK | change)


def test_measure_is_public():
    assert cloister.measure is measure
