"""What capture accepts and refuses."""

import numpy as np
import pytest
import torch
from torch import nn

from cloister.compile.capture import capture
from cloister.compile.lower import lower
from cloister.errors import TargetError, UnsupportedModel
from tests import oracle
from tests.models import Lambda, build, images


def test_two_outputs_are_refused_with_the_reason():
    model = Lambda(lambda m, x: (m.a(x), m.a(x)), a=nn.Linear(4, 2))
    with pytest.raises(UnsupportedModel, match="one float32 tensor") as caught:
        capture(model, (4,))
    assert ("(output)", "signature", "expected 1 tensor, but the model gives 2") in caught.value.problems


def test_integer_output_is_refused():
    with pytest.raises(UnsupportedModel) as caught:
        capture(Lambda(lambda m, x: m.a(x).argmax(1), a=nn.Linear(4, 2)), (4,))
    assert caught.value.problems == [("(output)", "signature", "expected a float32 tensor, but it is torch.int64")]


def test_two_inputs_are_refused():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    program = torch.export.export(Two(), (torch.zeros(1, 4), torch.zeros(1, 4)))
    with pytest.raises(UnsupportedModel, match="signature"):
        capture(program, (4,))


def test_control_flow_on_data_is_refused_with_the_reason_of_export():
    model = Lambda(lambda m, x: m.a(x) if x.sum() > 0 else x[:, :2], a=nn.Linear(4, 2))
    with pytest.raises(UnsupportedModel, match="cannot capture"):
        capture(model, (4,))


def test_wrong_input_shape_names_what_export_says():
    with pytest.raises(UnsupportedModel, match=r"input \(5\)"):
        capture(nn.Linear(4, 2), (5,))


def test_exported_program_gives_the_same_graph():
    model, shape = build("residual")
    program = torch.export.export(model, (images(shape, 2),), dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}})
    x = images(shape, 3)
    graphs = [lower(capture(source, shape).module) for source in (model, program)]
    results = [oracle.run(g, x.numpy())[g.output] for g in graphs]
    np.testing.assert_array_equal(*results)


def test_exported_program_with_a_fixed_batch_is_refused():
    program = torch.export.export(nn.Linear(4, 2), (torch.zeros(3, 4),))
    with pytest.raises(UnsupportedModel, match="batch of 1, but got 3"):
        capture(program, (4,))


def test_exported_program_of_another_shape_is_refused():
    program = torch.export.export(nn.Linear(4, 2), (torch.zeros(1, 4),))
    with pytest.raises(TargetError, match=r"expects \(4\), but got \(5\)"):
        capture(program, (5,))


def test_model_that_only_takes_a_batch_of_one_is_captured_so():
    model = Lambda(lambda m, x: m.a(x).view(1, 2, 2), a=nn.Linear(4, 4)).eval()
    captured = capture(model, (4,))
    assert not captured.dynamic_batch


@pytest.mark.parametrize(
    ("forward", "problem"),
    [
        (lambda m, x: {"logits": m.a(x)}, "the model gives a container of 1"),
        (lambda m, x: (m.a(x),), "the model gives a container of 1"),
        (lambda m, x: m.a(x).sum(1), "expected two axes or more"),
        (lambda m, x: m.a(x).mean(0, keepdim=True), "expected one row for each image"),
    ],
)
def test_outputs_that_are_no_batch_of_answers_are_refused(forward, problem):
    with pytest.raises(UnsupportedModel, match="signature") as caught:
        capture(Lambda(forward, a=nn.Linear(4, 2)), (4,))
    assert problem in caught.value.problems[0][2]


def test_module_that_takes_two_tensors_is_refused_as_such():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(UnsupportedModel) as caught:
        capture(Two(), (4,))
    assert caught.value.problems == [("(input)", "signature", "expected 1 tensor, but the model takes 2")]


def test_capture_keeps_the_mode_of_every_module():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()
    model[1].eval()
    capture(model, (3, 8, 8))
    assert [module.training for module in model] == [True, False, True]
