"""The cached prefix gives the bits of the slow, obvious implementation; what is frozen stays frozen."""

import errno
import os

import pytest
import torch
from torch import nn

from cloister.errors import UserError
from cloister.exposure.cut import cut_before
from cloister.exposure.network import Network
from cloister.exposure.tuning import Activations, Samples, Settings, fine_tune, initial_tensors
from tests import reference_exposure
from tests.exposure import cases

SETTINGS = {"epochs": 2, "batch_size": 16, "seed": 3}
N_MEMBERS, N = 24, 50
#: Between them: residual connections, groups, batch norms of all kinds, weights used twice, concatenation, attention.
NAMES = ["grouped", "batch_norms", "residual", "concat", "shapes", "twice", "attention", "attention-batch-second"]


def samples(network, shape, n=N):
    images, labels = cases.pair(shape, n, 1)
    return Samples(
        images=network.images(torch.from_numpy(images)), labels=torch.from_numpy(labels), n_members=N_MEMBERS
    )


def tune_both(name, precision, fit, tmp_path, bound_bytes=1 << 30):
    """Every layer by both implementations: tensors and readings of ours, model and readings of the reference."""
    model, shape = cases.build(name)
    network = cases.network(name, channels_last=precision == "bfloat16")
    data = samples(network, shape)
    settings = Settings(**SETTINGS, learning_rate=1e-2, precision=precision)
    for group in network.groups():
        with settings.arithmetic():
            cut = cut_before(network, group, data.images[:3])
        activations = Activations(cut, data, settings, folder=tmp_path, bound_bytes=bound_bytes)
        start = initial_tensors(network, group)
        run = fine_tune(
            cut, activations, data, start, settings, variant="target", repeat=1, fit=fit, on_epoch=lambda _: None
        )
        images = data.images.contiguous()
        expected = reference_exposure.fine_tune(
            model, list(group.parameters), images, data.labels, N_MEMBERS,
            fit=fit, lr=1e-2, repeat=1, precision=precision, **SETTINGS,
        )  # fmt: skip
        yield cut, activations, start, run, *expected


def assert_same(start, run, model, readings):
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    for name, tensor in start.items():
        assert torch.equal(tensor, tensors[name]), name
    ours = [
        (one.loss_members, one.loss_nonmembers, one.accuracy_members, one.accuracy_nonmembers) for one in run.readings
    ]
    assert ours == readings
    assert run.has_gradient


@pytest.mark.parametrize(("name", "fit"), [*((name, "r") for name in NAMES), ("residual", "p")])
def test_cache_gives_the_bits_of_the_obvious_implementation(name, fit, tmp_path):
    for _, _, *found in tune_both(name, "float32", fit, tmp_path):
        assert_same(*found)


@pytest.mark.parametrize("name", ["batch_norms", "residual", "attention"])
def test_cache_gives_the_bits_in_bfloat16_and_channels_last(name, tmp_path):
    for _, _, *found in tune_both(name, "bfloat16", "r", tmp_path):
        assert_same(*found)


def test_activations_in_files_give_the_same_bits_and_leave_nothing(tmp_path):
    on_disk = 0
    for _, activations, *found in tune_both("residual", "float32", "r", tmp_path, bound_bytes=0):
        on_disk += activations.on_disk
        assert_same(*found)
        assert not list(tmp_path.iterdir())  # mapped, and without a name
    assert on_disk == 4  # all layers but the first, before which there is nothing to compute


def test_no_room_for_activations_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"no room for .* of activations") as caught:
        list(tune_both("residual", "float32", "r", tmp_path, bound_bytes=0))
    assert "--state" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_prefix_has_nothing_of_the_layer_and_suffix_nothing_that_could_cross(tmp_path):
    for cut, *_ in tune_both("residual", "float32", "p", tmp_path):
        read = {str(node.target) for node in cut.prefix.graph.nodes if node.op == "get_attr"} if cut.prefix else set()
        assert not read & set(cut.group.parameters)
        assert "a.weight" not in {str(node.target) for node in cut.training.graph.nodes}
    # The last layer reads the flattened features, and nothing else.
    assert len(cut.crossings) == 1
    assert cut.crossings[0].row == 8


def test_several_values_cross_a_residual_connection():
    _, shape = cases.build("residual")
    network = cases.network("residual")
    (group,) = [group for group in network.groups() if group.name == "b"]
    cut = cut_before(network, group, samples(network, shape).images[:3])
    assert len(cut.crossings) == 2


def test_cutting_and_tuning_leave_model_and_network_alone(tmp_path):
    model, shape = cases.build("batch_norms")
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Network(model, shape)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    network = cases.network("batch_norms")
    list(tune_both("batch_norms", "float32", "p", tmp_path))
    assert all(torch.equal(before[name], network.tensors[name]) for name in network.parameters)
    assert not any(tensor.requires_grad for tensor in network.tensors.values())


def test_constants_and_buffers_that_are_not_saved_are_part_of_the_model(tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 5)
            self.register_buffer("scale", torch.full((8,), 2.0), persistent=False)

        def forward(self, x):
            return self.b(self.a(x + torch.tensor([1.0, 2, 3, 4, 5, 6])) * self.scale)

    model = Scaled()
    network = Network(model, (6,))
    images = torch.from_numpy(cases.pair((6,), 5, 0)[0])
    assert torch.equal(network.part((network.output,))(images)[0], model(images))
    (_, group) = network.groups()
    cut = cut_before(network, group, images)
    (value,) = cut.prefix(images)
    assert torch.equal(cut.evaluation(5, value, *initial_tensors(network, group).values()), model(images))
