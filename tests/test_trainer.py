"""Training is seeded and resumable to the bit, learns, and touches nothing but its own files."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cloister import zoo
from cloister.data import Dataset, load_dataset, split
from cloister.errors import DataError, OutputExists, TargetError, UserError
from cloister.target import Target, load_checkpoint, load_target, with_members
from cloister.trainer import evaluate, train, train_again

REAL = os.environ.get("CLOISTER_DATA")
needs_real = pytest.mark.skipif(REAL is None, reason="CLOISTER_DATA names no folder of data sets")
SHAPE = (1, 8, 8)
#: Few steps, but every kind of state: batch norm, dropout, momentum, a schedule.
SETTINGS = {"epochs": 4, "n_members": 90, "batch_size": 32, "precision": "float32", "n_threads": 1}


def small_target():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, 10)
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return Target(model=model, name="small", input_shape=SHAPE, n_classes=10)


class Recorder:
    """Keeps what it is told, and does something at one step."""

    def __init__(self, at=None, action=None):
        self.calls = []
        self.at = at
        self.action = action

    def update(self, done, total, text):
        self.calls.append((done, total, text))
        if done == self.at:
            self.action()


def interrupt():
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def uninterrupted(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "small.safetensors"
    result = train(small_target(), digits, out=out, **SETTINGS)
    return result, load_checkpoint(out)


def assert_same(out, uninterrupted):
    state, info = load_checkpoint(out)
    expected_state, expected_info = uninterrupted[1]
    assert info == expected_info
    assert list(state) == list(expected_state)
    for name, tensor in expected_state.items():
        assert torch.equal(state[name], tensor), name
    assert [path.name for path in out.parent.iterdir()] == [out.name]


# --- what it gives ---


def test_vgg7_learns_the_digits(digits, tmp_path):
    target = load_target("zoo:vgg7", input_shape=SHAPE, n_classes=10)
    result = train(target, digits, out=tmp_path / "v.safetensors", epochs=20, lr=5e-3, precision="float32", n_threads=1)
    assert result.test_accuracy > 0.95
    assert result.train_accuracy > 0.99
    assert result.generalization_gap == result.train_accuracy - result.test_accuracy
    assert result.n_members == 718
    trained = with_members(load_target("zoo:vgg7", weights=tmp_path / "v.safetensors"), digits)
    assert evaluate(trained.model, digits) == result.test_accuracy == trained.checkpoint.test_accuracy
    logits = trained.model(torch.from_numpy(trained.members[0])).detach().numpy()
    assert np.mean(logits.argmax(1) == trained.members[1]) == pytest.approx(result.train_accuracy)


def test_training_is_the_same_again_and_differs_by_seed(digits, tmp_path, uninterrupted):
    (tmp_path / "a").mkdir()
    train(small_target(), digits, out=tmp_path / "a" / "w.safetensors", **SETTINGS)
    assert_same(tmp_path / "a" / "w.safetensors", uninterrupted)
    train(small_target(), digits, out=tmp_path / "b.safetensors", **SETTINGS, seed=1)
    other, _ = load_checkpoint(tmp_path / "b.safetensors")
    assert not torch.equal(other["0.weight"], uninterrupted[1][0]["0.weight"])


def test_training_again_on_the_members_gives_the_same_weights(digits, tmp_path, uninterrupted):
    expected, recipe = uninterrupted[1]
    inside, _ = split(digits.n_train, n_members=90, seed=0)
    images, labels = digits.images(inside), digits.labels(inside)
    resume = tmp_path / "resume"
    with pytest.raises(KeyboardInterrupt):
        train_again(small_target().model, images, labels, recipe, resume=resume, progress=Recorder(5, interrupt))
    recorder = Recorder()
    trained = train_again(small_target().model, images, labels, recipe, resume=resume, progress=recorder)
    assert recorder.calls[0][0] == 4  # the second epoch
    assert not trained.training
    assert all(torch.equal(expected[name], tensor) for name, tensor in trained.state_dict().items())
    assert not list(tmp_path.iterdir())


def test_training_leaves_model_random_state_and_threads_alone(digits, tmp_path):
    target = small_target()
    before = {name: tensor.clone() for name, tensor in target.model.state_dict().items()}
    state, n_threads, was_training = torch.get_rng_state(), torch.get_num_threads(), target.model.training
    train(target, digits, out=tmp_path / "w.safetensors", **SETTINGS)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == n_threads
    assert target.model.training == was_training
    assert all(torch.equal(before[name], tensor) for name, tensor in target.model.state_dict().items())


def test_training_sees_every_member_once_an_epoch_and_no_other(digits, tmp_path):
    seen = []

    @dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
    class Watched(Dataset):
        def images(self, indices=slice(None), part="train"):
            if part == "train":
                seen.extend(indices)
            return super().images(indices, part)

    watched = Watched(**{field.name: getattr(digits, field.name) for field in dataclasses.fields(digits)})
    train(small_target(), watched, out=tmp_path / "w.safetensors", **SETTINGS)
    inside, _ = split(digits.n_train, n_members=90, seed=0)
    epochs = np.array(seen).reshape(5, 90)  # four of training, one of measuring
    assert all(np.array_equal(np.sort(epoch), inside) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


def test_progress_counts_every_step(digits, tmp_path):
    recorder = Recorder()
    train(small_target(), digits, out=tmp_path / "w.safetensors", progress=recorder, **SETTINGS)
    assert [(done, total) for done, total, _ in recorder.calls] == [(i, 12) for i in range(1, 13)]
    assert recorder.calls[-1][2].startswith("epoch 4/4, loss ")


@pytest.mark.parametrize(("n_members", "batch_size", "epochs"), [(2, 2, 1), (3, 2, 1), (65, 64, 1), (5, 500, 2)])
def test_odd_counts_train(digits, tmp_path, n_members, batch_size, epochs):
    settings = SETTINGS | {"n_members": n_members, "batch_size": batch_size, "epochs": epochs}
    result = train(small_target(), digits, out=tmp_path / "w.safetensors", **settings)
    assert result.n_members == n_members


# --- interruptions ---


@pytest.mark.parametrize("at", [1, 3, 4, 8, 12])
def test_interrupted_training_resumes_to_the_bit(digits, tmp_path, uninterrupted, at):
    out = tmp_path / "w.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(small_target(), digits, out=out, progress=Recorder(at, interrupt), **SETTINGS)
    assert not out.exists()
    recorder = Recorder()
    train(small_target(), digits, out=out, progress=recorder, **SETTINGS)
    assert recorder.calls[0][0] == (at - 1) // 3 * 3 + 1
    assert_same(out, uninterrupted)


def test_interrupted_bfloat16_training_resumes_to_the_bit(digits, tmp_path):
    settings = SETTINGS | {"precision": "bfloat16"}
    train(small_target(), digits, out=tmp_path / "whole.safetensors", **settings)
    with pytest.raises(KeyboardInterrupt):
        train(small_target(), digits, out=tmp_path / "w.safetensors", progress=Recorder(8, interrupt), **settings)
    result = train(small_target(), digits, out=tmp_path / "w.safetensors", **settings)
    assert result.precision == "bfloat16"
    whole, _ = load_checkpoint(tmp_path / "whole.safetensors")
    again, _ = load_checkpoint(tmp_path / "w.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert all(tensor.dtype != torch.bfloat16 for tensor in whole.values())


KILLED = """
import os, signal, sys
sys.path[:0] = {path!r}
from test_trainer import SETTINGS, Recorder, small_target
from cloister.data import load_dataset
from cloister.trainer import train
from pathlib import Path
kill = Recorder(8, lambda: os.kill(os.getpid(), signal.SIGKILL))
train(small_target(), load_dataset("digits"), out=Path({out!r}), progress=kill, **SETTINGS)
"""


def test_killed_training_resumes_to_the_bit(digits, tmp_path, uninterrupted):
    out = tmp_path / "w.safetensors"
    script = KILLED.format(path=[str(Path(__file__).parent), *sys.path], out=str(out))
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors.resume"]
    train(small_target(), digits, out=out, **SETTINGS)
    assert_same(out, uninterrupted)


@pytest.fixture
def begun(digits, tmp_path):
    out = tmp_path / "w.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(small_target(), digits, out=out, progress=Recorder(5, interrupt), **SETTINGS)
    return out


def test_resuming_with_other_settings_names_them(digits, begun, uninterrupted):
    other = SETTINGS | {"epochs": 5}
    with pytest.raises(UserError, match=r"epochs 4, now 5; lr 0\.002, now 0\.1") as caught:
        train(small_target(), digits, out=begun, lr=0.1, **other)
    assert ".resume" in caught.value.hint
    target = small_target()
    nn.init.ones_(target.model[0].bias)
    with pytest.raises(UserError, match="initial_sha256"):
        train(target, digits, out=begun, **SETTINGS)
    train(small_target(), digits, out=begun, **SETTINGS)
    assert_same(begun, uninterrupted)


def test_force_drops_a_state_of_other_settings(digits, begun):
    settings = SETTINGS | {"epochs": 1}
    assert train(small_target(), digits, out=begun, force=True, **settings).n_epochs == 1


@pytest.mark.parametrize("size", [0, 100, -1])
def test_damaged_state_is_refused_or_dropped_by_force(digits, begun, uninterrupted, size):
    state = begun.with_name("w.safetensors.resume")
    state.write_bytes(state.read_bytes()[:size])
    with pytest.raises(UserError, match="cannot resume"):
        train(small_target(), digits, out=begun, **SETTINGS)
    train(small_target(), digits, out=begun, force=True, **SETTINGS)
    assert_same(begun, uninterrupted)


# --- refusals ---


def test_existing_output_is_refused_unless_forced(digits, tmp_path):
    out = tmp_path / "w.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(OutputExists):
        train(small_target(), digits, out=out, **SETTINGS)
    assert out.read_bytes() == b"mine"
    train(small_target(), digits, out=out, force=True, **SETTINGS)
    assert load_checkpoint(out)[1].model == "small"


def test_missing_folder_is_found_before_training(digits, tmp_path):
    recorder = Recorder()
    with pytest.raises(UserError, match="cannot be written"):
        train(small_target(), digits, out=tmp_path / "none" / "w.safetensors", progress=recorder, **SETTINGS)
    assert recorder.calls == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "at least 1 epoch"),
        ({"n_members": 1}, "at least 2 members"),
        ({"n_members": 1437}, "number of members"),
        ({"seed": -1}, "a seed"),
        ({"lr": 0.0}, "learning rate"),
        ({"lr": float("nan")}, "learning rate"),
        ({"batch_size": 1}, "batch size"),
        ({"n_threads": 0}, "thread"),
        ({"lr": 1e38}, "not finite in epoch 1"),
    ],
)
def test_bad_settings_are_refused(digits, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        train(small_target(), digits, out=tmp_path / "w.safetensors", **(SETTINGS | change))
    assert not list(tmp_path.iterdir())


def test_output_of_another_kind_is_refused(digits, tmp_path):
    with pytest.raises(UserError, match=r"\.safetensors"):
        train(small_target(), digits, out=tmp_path / "w.pt", **SETTINGS)


@pytest.mark.parametrize("change", [{"input_shape": (1, 9, 9)}, {"n_classes": 11}])
def test_target_that_does_not_fit_the_data_is_refused(digits, tmp_path, change):
    target = dataclasses.replace(small_target(), **change)
    with pytest.raises(DataError, match="`small`"):
        train(target, digits, out=tmp_path / "w.safetensors", **SETTINGS)


def test_target_that_cannot_be_trained_is_refused(digits, tmp_path):
    program = torch.export.export(nn.Flatten(), (torch.zeros(2, *SHAPE),))
    for model in (program, nn.Flatten()):
        target = Target(model=model, name="fixed", input_shape=SHAPE)
        with pytest.raises(TargetError, match="`fixed`"):
            train(target, digits, out=tmp_path / "w.safetensors", **SETTINGS)


# --- evaluate ---


@pytest.mark.parametrize("batch_size", [7, 400])
def test_evaluate_counts_right_answers(digits, batch_size):
    class Always3(nn.Module):
        def forward(self, images):
            return nn.functional.one_hot(torch.full((len(images),), 3), 10).float()

    model = Always3()
    expected = np.mean(digits.y_test == 3)
    assert evaluate(model, digits, batch_size=batch_size) == expected
    assert model.training
    threes = np.flatnonzero(digits.y_train == 3)
    assert evaluate(model, digits, part="train", indices=threes) == 1


# --- the published sets ---


@needs_real
@pytest.mark.slow
@pytest.mark.parametrize(("spec", "name", "at_least"), [("MNIST", "vgg7", 0.96), ("cifar10.npz", "resnet20", 0.45)])
def test_one_epoch_on_published_sets(tmp_path, spec, name, at_least):
    data = load_dataset(str(Path(REAL) / spec))
    model = zoo.build(name, input_shape=data.input_shape, n_classes=data.n_classes)
    target = Target(model=model, name=name, input_shape=data.input_shape)
    assert train(target, data, out=tmp_path / "w.safetensors", epochs=1).test_accuracy > at_least
