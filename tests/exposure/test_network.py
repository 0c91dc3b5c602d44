"""Layers are those of the layer table or of the groups that are given; what cannot be a network is named."""

import numpy as np
import pytest
import torch
from torch import nn

from cloister.compile.capture import capture
from cloister.compile.lower import lower
from cloister.errors import TargetError, UnsupportedModel
from cloister.exposure.network import Network
from cloister.layers import layer_table
from tests.exposure import cases


@pytest.mark.parametrize("name", ["batch_norms", "residual", "twice", "attention"])
def test_layers_are_those_of_the_layer_table(name):
    model, shape = cases.build(name)
    table = layer_table(lower(capture(model, shape).module))
    # A batch norm without parameters is in the table, since it computes; there is nothing in it to fine-tune.
    with_parameters = {parameter.rpartition(".")[0] or parameter for parameter, _ in model.named_parameters()}
    groups = cases.network(name).groups()
    assert [group.name for group in groups] == [layer.name for layer in table if layer.name in with_parameters]
    parameters = [parameter for group in groups for parameter in group.parameters]
    assert sorted(parameters) == sorted(name for name, _ in model.named_parameters())


def test_parameters_of_the_model_itself_are_one_layer_where_they_are_read_together():
    (layer,) = layer_table(lower(capture(nn.Linear(6, 5), (6,)).module))
    (group,) = Network(nn.Linear(6, 5), (6,)).groups()
    assert group.name == layer.name == "weight"
    assert group.parameters == ("weight", "bias")


def test_exported_program_has_the_layers_of_its_module():
    model, shape = cases.build("residual")
    program = torch.export.export(model, (torch.zeros(2, *shape),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert Network(program, shape).groups() == cases.network("residual").groups()


# --- groups ---


def test_groups_may_be_given():
    groups = cases.network("residual").groups({"late": ["[cd].*"], "early": ["a.weight", "a.bias"]})
    assert [(group.name, group.parameters) for group in groups] == [
        ("early", ("a.weight", "a.bias")),
        ("late", ("c.weight", "c.bias", "d.weight", "d.bias")),
    ]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"x": ["nothing.*"]}, "no parameter matches"),
        ({"x": ["a.*"], "y": ["*.weight"]}, "`a.weight` is in `x` and in `y`"),
        ({}, "expected at least one"),
    ],
)
def test_groups_that_do_not_fit(groups, message):
    with pytest.raises(TargetError, match=message):
        cases.network("residual").groups(groups)


def test_batch_norm_statistics_belong_to_the_group_that_has_the_scale():
    groups = {group.name: group for group in cases.network("batch_norms").groups()}
    assert groups["a"].parameters == ("a.weight", "folded.weight", "folded.bias")
    assert groups["a"].buffers == ("folded.running_mean", "folded.running_var")
    assert groups["twice"].buffers == ()


# --- models that cannot be measured ---


def test_model_of_one_image_at_a_time_is_refused():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 5)

        def forward(self, x):
            assert x.shape[0] == 1
            return self.fc(x)

    with pytest.raises(UnsupportedModel, match="one at a time"):
        Network(Single(), (6,))


def test_model_without_parameters_is_refused():
    with pytest.raises(TargetError, match="no"):
        Network(nn.Sequential(nn.Flatten(), nn.ReLU()), (2, 3))


def test_hash_is_of_weights_and_structure():
    model = nn.Sequential(nn.Linear(6, 5))
    before = Network(model, (6,)).sha256
    assert Network(model, (6,)).sha256 == before
    assert Network(nn.Sequential(*model, nn.ReLU()), (6,)).sha256 != before
    with torch.no_grad():
        model[0].bias[0] = np.nextafter(model[0].bias[0].item(), 9, dtype=np.float32).item()
    assert Network(model, (6,)).sha256 != before
