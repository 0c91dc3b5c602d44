"""References are trained in pairs on halves, kept on disk, and not trained again."""

import dataclasses
import fcntl
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from cloister.attacks import lira, metrics, references, rmia, signals
from cloister.attacks.references import train_references
from cloister.checkpoint import Checkpoint
from cloister.errors import DataError, InputError, TargetError, UserError
from cloister.target import Target
from cloister.trainer import train_again

RECIPE = Checkpoint(
    model="toy", input_shape=(12,), n_classes=4, seed=1, n_members=40, data="random", data_sha256="", n_epochs=30,
    learning_rate=2e-2, batch_size=20, precision="float32", train_accuracy=1.0, test_accuracy=0.5,
)  # fmt: skip


def network():
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))


def pair(n, seed):
    """Random images with random labels: what is known of them is memory."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 12)).astype(np.float32), rng.integers(0, 4, n)


@pytest.fixture(scope="module")
def pool():
    return pair(80, 0)


@pytest.fixture(scope="module")
def population():
    return pair(50, 1)


@pytest.fixture(scope="module")
def target(pool, tmp_path_factory):
    """Trained on the first half of the pool."""
    images, labels = pool
    resume = tmp_path_factory.mktemp("victim") / "resume"
    torch.manual_seed(0)
    model = train_again(network(), images[:40], labels[:40], RECIPE, resume=resume)
    return Target(model=model, name="toy", input_shape=(12,), n_classes=4, checkpoint=RECIPE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("references")


@pytest.fixture(scope="module")
def trained(target, pool, population, folder):
    return train_references(target, pool, n_models=4, folder=folder, population=population)


class Told:
    def __init__(self, stop_at=None):
        self.calls, self.stop_at = [], stop_at

    def update(self, done, total, text):
        self.calls.append((done, total, text))
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt


def answers(target, images):
    with torch.inference_mode():
        return target.model(torch.from_numpy(images)).numpy()


def test_references_are_pairs_of_halves_that_know_theirs(trained, pool):
    assert trained.is_in.shape == (4, 80)
    np.testing.assert_array_equal(trained.is_in[0], ~trained.is_in[1])
    np.testing.assert_array_equal(trained.is_in.sum(axis=1), 40)
    assert (trained.is_in[0] != trained.is_in[2]).any()
    for at in range(4):
        right = trained.logits(at).argmax(axis=1) == pool[1]
        assert right[trained.is_in[at]].mean() > 0.95
        assert right[~trained.is_in[at]].mean() < 0.6
        assert trained.logits(at, "population").shape == (50, 4)
    assert not np.allclose(trained.logits(0), trained.logits(2))


def test_attacks_with_references_find_the_members(target, trained, pool, population):
    is_member = np.arange(80) < 40
    phi = signals.phi(answers(target, pool[0]), pool[1])
    scores = lira.online(phi, trained.scores("phi"), trained.is_in, fixed_variance=True)
    assert metrics.area(scores, is_member) > 0.85
    scores = rmia.offline(
        signals.confidence(answers(target, pool[0]), pool[1]),
        trained.scores("confidence"),
        trained.is_in,
        signals.confidence(answers(target, population[0]), population[1]),
        trained.scores("confidence", "population"),
    )
    assert metrics.area(scores, is_member) > 0.85


def test_what_is_there_is_not_trained_again_and_more_can_be_added(target, pool, population, trained, folder):
    told = Told()
    again = train_references(target, pool, n_models=6, folder=folder, population=population, progress=told)
    assert again.files[:4] == trained.files
    assert told.calls[3][2] == "reference 4 of 6 is there"
    assert "reference 5 of 6, epoch 1/30" in told.calls[4][2]
    assert told.calls[4][2].endswith("left")
    assert told.calls[-1][:2] == (6 * 60, 6 * 60)
    assert [done for done, _, _ in told.calls[4:]] == sorted(done for done, _, _ in told.calls[4:])


def test_an_interrupted_training_goes_on_with_the_same_bits(target, pool, population, trained, tmp_path):
    arguments = {"n_models": 4, "folder": tmp_path, "population": population}
    with pytest.raises(KeyboardInterrupt):
        train_references(target, pool, **arguments, progress=Told(stop_at=75))
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert len(list(tmp_path.glob("*.resume"))) == 1
    told = Told()
    resumed = train_references(target, pool, **arguments, progress=told)
    assert "reference 2 of 4, epoch 8/30" in told.calls[1][2]
    for at in range(4):
        np.testing.assert_array_equal(resumed.logits(at), trained.logits(at))
    assert not list(tmp_path.glob("*.resume"))


class Other:
    """Another process that is at one reference, and finishes it when it is waited for."""

    def __init__(self, done, folder):
        self.done, self.path, self.texts = done, folder / done.name, []
        self.lock = self.path.with_suffix(".lock").open("ab")
        fcntl.flock(self.lock, fcntl.LOCK_EX)

    def update(self, done, total, text):
        self.texts.append(text)
        if "another process" in text:
            shutil.copy(self.done, self.path)
            self.lock.close()


def test_processes_share_the_work(target, pool, population, trained, tmp_path):
    other = Other(trained.files[1], tmp_path)
    made = train_references(target, pool, n_models=4, folder=tmp_path, population=population, progress=other)
    assert sum("epoch 30/30" in text for text in other.texts) == 3 * 2, "two steps in an epoch of three references"
    assert other.texts[-1] == "reference 4 of 4 is trained by another process"
    for at in range(4):
        np.testing.assert_array_equal(made.logits(at), trained.logits(at))
    assert not list(tmp_path.glob("*.lock"))


def test_another_choice_of_halves_is_not_what_is_there(target, pool, population, trained, folder, monkeypatch):
    monkeypatch.setattr(references, "_halves", lambda n, n_models, seed: ~trained.is_in)
    recipe = Checkpoint(**{field: getattr(RECIPE, field) for field in RECIPE.__struct_fields__} | {"n_epochs": 1})
    arguments = {"n_models": 4, "folder": folder, "population": population, "recipe": recipe}
    swapped = train_references(target, pool, **arguments)
    monkeypatch.undo()
    assert not set(train_references(target, pool, **arguments).files) & set(swapped.files)


def test_a_damaged_file_is_made_anew(target, pool, tmp_path):
    made = train_references(target, pool, n_models=2, folder=tmp_path)
    before = made.logits(0)
    made.files[0].write_bytes(made.files[0].read_bytes()[:100])
    again = train_references(target, pool, n_models=2, folder=tmp_path)
    np.testing.assert_array_equal(again.logits(0), before)


def test_other_settings_are_other_files(target, pool, trained, tmp_path):
    kept = {path.name for path in trained.files}
    one_epoch = dataclasses.replace(target, checkpoint=None)
    recipe = Checkpoint(**{field: getattr(RECIPE, field) for field in RECIPE.__struct_fields__} | {"n_epochs": 1})
    for changed in [
        {"recipe": recipe},
        {"recipe": recipe, "seed": 1},
        {"recipe": recipe, "deployments": {"int8": references.as_trained}},
        {"recipe": recipe, "build": lambda seed: nn.Linear(12, 4)},
    ]:
        made = train_references(one_epoch, pool, n_models=2, folder=tmp_path, **changed)
        assert not {path.name for path in made.files} & kept
        kept |= {path.name for path in made.files}


def test_release_is_the_victims_unless_the_attack_does_not_know_of_it(target, pool, folder, population, trained):
    def halved(logits):
        return logits / 2

    filtered = train_references(target, pool, n_models=4, folder=folder, population=population, release=halved)
    assert filtered.files == trained.files, "what is released is not what is trained"
    np.testing.assert_array_equal(filtered.logits(1), trained.logits(1) / 2)
    np.testing.assert_array_equal(filtered.logits(1, adaptive=False), trained.logits(1))
    np.testing.assert_array_equal(filtered.scores("phi")[1], signals.phi(trained.logits(1) / 2, pool[1]))
    shadow = filtered.shadow(1)
    np.testing.assert_array_equal(shadow.logits, trained.logits(1) / 2)
    np.testing.assert_array_equal(shadow.is_member, trained.is_in[1])
    hides = dataclasses.replace(trained, release=lambda logits: np.where(logits < 0, -np.inf, logits))
    with pytest.raises(InputError, match="released logits of reference 0: expected finite"):
        hides.logits(0)
    cut = dataclasses.replace(trained, release=lambda logits: logits[:, :2])
    with pytest.raises(InputError, match=r"release: expected logits of shape \(80, 4\)"):
        cut.logits(0)


def test_references_answer_as_they_are_deployed(target, pool, tmp_path):
    def coarse(model):
        return lambda images: model(images).round()

    made = train_references(
        target, pool, n_models=2, folder=tmp_path, deployments={"plain": references.as_trained, "coarse": coarse}
    )
    np.testing.assert_array_equal(made.logits(0, deployment="coarse"), made.logits(0, deployment="plain").round())
    with pytest.raises(InputError, match=r"expected one of pool.coarse, pool.plain, but got pool.as-trained"):
        made.logits(0)
    with pytest.raises(InputError, match="trained without"):
        made.scores("phi", "population")


def test_bad_input_is_named(target, pool, population, tmp_path):
    def refused(error, says, pool=pool, target=target, **arguments):
        with pytest.raises(error, match=says):
            train_references(target, pool, **{"n_models": 2, "folder": tmp_path / "none"} | arguments)
        assert not (tmp_path / "none").exists(), "refused before any work"

    refused(UserError, "an even number of models", n_models=3)
    refused(UserError, "seed in", seed=-1)
    refused(UserError, "at least one deployment", deployments={})
    refused(TargetError, "a checkpoint that tells how", target=dataclasses.replace(target, checkpoint=None))
    refused(DataError, "4 are in the pool", population=(pool[0][:4], pool[1][:4]))
    refused(DataError, r"pool: expected at least 4 images \(N, 12\)", pool=(pool[0][:, :6], pool[1]))
    refused(DataError, "population: expected at least 4 images", population=(population[0][:3], population[1][:3]))
    refused(InputError, r"pool: expected labels in \[0, 4\)", pool=(pool[0], pool[1] + 1))
    refused(InputError, r"pool: expected shape \(80\)", pool=(pool[0], pool[1][:-1]))
    exported = torch.export.export(target.model, (torch.zeros(2, 12),))
    refused(TargetError, "cannot be trained", target=dataclasses.replace(target, model=exported))
    file = tmp_path / "file"
    file.touch()
    refused(UserError, "cannot be made", folder=file)
