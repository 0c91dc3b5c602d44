"""What a view holds, and what it cannot hold."""

import copy
import gc
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from cloister.attacks.observations import Device
from cloister.attacks.twin import round_through
from cloister.attacks.view import view_of_bundle, view_of_plan
from cloister.errors import DataError, PlanError
from cloister.protection import protect_lowered
from tests import models, oracle
from tests.attacks import cases
from tests.models import Lambda


def no_inside(step, inputs):
    raise AssertionError(f"nothing is inside, but {step} was called")


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        *(("concat", 8), ("avg_pools", 8), ("batch_norms", 8), ("shapes", 8), ("twice", 8), ("depthwise", 8)),
        *(("grouped", 32), ("max_pools", 32), ("sequence", 32)),
    ],
)
def test_with_nothing_inside_a_view_computes_what_the_model_does(name, bits):
    lowered = cases.model_of(name, bits)
    view = view_of_plan(lowered, "none")
    images = models.images(lowered.captured.input_shape, 3)
    expected = oracle.run(lowered.graph, images.numpy())[lowered.graph.output]
    np.testing.assert_allclose(view.run(images, no_inside).values[view.output], expected, atol=1e-6)
    assert view.output_is_outside
    assert not view.crossing


def test_a_layer_that_is_used_at_several_scales_keeps_its_name():
    names = list(view_of_plan(cases.model_of("twice", 8), "none").parameters)
    assert [name for name in names if name.endswith("weight")] == ["a.weight", "b.weight", "b@2.weight", "fc.weight"]


def test_parameters_are_the_modules():
    lowered, model = cases.small()
    view = view_of_plan(lowered, "last:1")
    own = dict(model.named_parameters())
    assert set(view.parameters) == {name for name in own if not name.startswith("10.")}
    for name, value in view.parameters.items():
        torch.testing.assert_close(value, own[name], rtol=0, atol=0)


def test_quantized_parameters_are_the_quantized_values():
    """In steps of the output for a step of the input: each unit is its integers times one number."""
    lowered, model = cases.small(bits=8)
    view = view_of_plan(lowered, "none")
    for name in ("0.weight", "6.weight"):
        own, seen = model.get_parameter(name).detach().flatten(1), view.parameters[name].flatten(1)
        scale = own.abs().amax(1, keepdim=True) / 127
        integers = round_through(own / scale)
        ratio = seen.abs().amax(1, keepdim=True) / 127
        torch.testing.assert_close(seen, integers * ratio)


@pytest.mark.parametrize(("inside", "bits"), [("last:2", 8), ("3", 32), ("all", 8), ("none", 32)])
def test_the_view_of_a_bundle_is_that_of_its_plan(tmp_path, inside, bits):
    lowered, _ = cases.small(bits=bits)
    path = protect_lowered(lowered, tmp_path / "model.cloister", inside=inside).path
    planned, deployed = view_of_plan(lowered, inside), view_of_bundle(path)
    assert deployed.sha256 == planned.sha256
    assert deployed.steps == planned.steps
    assert set(deployed.parameters) == set(planned.parameters)
    for name, value in planned.parameters.items():
        assert torch.equal(value, deployed.parameters[name])


def test_with_everything_inside_no_parameter_is_seen():
    view = view_of_plan(cases.small()[0], "all")
    assert not view.sees_parameters
    assert not view.output_is_outside
    assert view.layers_inside == ("0", "3", "6", "8", "10")


def test_a_plan_for_another_model_is_refused():
    with pytest.raises(PlanError, match="conv_of_another"):
        view_of_plan(cases.small()[0], "conv_of_another")


def foreign():
    """An operation that runs in torch, with a parameter of its own, between layers."""
    model = Lambda(
        lambda m, x: m.c(torch.sigmoid(m.norm(m.a(x)))), a=nn.Linear(6, 9), norm=nn.LayerNorm(9), c=nn.Linear(9, 5)
    )
    return cases.lowered_of(model.eval(), (6,)), model


def test_what_runs_in_torch_is_seen_too():
    lowered, model = foreign()
    device = Device(lowered, "c")
    assert any("norm" in name for name in device.view.parameters)
    seen = device.observe(cases.pair(7, (6,)), training=True)
    torch.testing.assert_close(seen.released, model(seen.images).detach())
    assert seen.gradients


# --- what is hidden is not there ---


def reachable(root):
    """Every object that can be reached, but not through modules, types and code that all share."""
    seen, stack = {}, [root]
    while stack:
        one = stack.pop()
        if id(one) in seen or isinstance(one, types.ModuleType | type):
            continue
        seen[id(one)] = one
        if isinstance(one, types.FunctionType):
            stack += [one.__closure__, one.__defaults__, one.__kwdefaults__]
            continue
        stack += gc.get_referents(one)
    return list(seen.values())


def holds(root, secret):
    """Whether the numbers of a tensor are anywhere, as a tensor, an array or bytes."""
    wanted = secret.detach().numpy().ravel()
    for one in reachable(root):
        if isinstance(one, torch.Tensor) and one.dtype == torch.float32:
            one = one.detach().cpu().numpy()
        if isinstance(one, np.ndarray) and one.dtype == np.float32 and one.size >= wanted.size:
            flat = one.ravel()
            if any(np.array_equal(flat[at : at + wanted.size], wanted) for at in np.flatnonzero(flat == wanted[0])):
                return True
        if isinstance(one, bytes | bytearray) and (wanted[:1].tobytes() in one):
            return True
    return False


@pytest.mark.parametrize("inside", ["last:2", "3", "6,10"])
def test_no_hidden_tensor_can_be_reached(inside):
    lowered, model = cases.small()
    device = Device(lowered, inside)
    seen = device.observe(cases.pair(4), training=True)
    hidden = [f"{name}.{kind}" for name in device.view.layers_inside for kind in ("weight", "bias")]
    for name, value in model.named_parameters():
        assert holds((device.view, seen), value) == (name not in hidden), name
        assert holds(device, value), name  # the search finds what is there


def test_no_hidden_tensor_can_be_reached_from_the_view_of_a_bundle(tmp_path):
    lowered, model = cases.small()
    view = view_of_bundle(protect_lowered(lowered, tmp_path / "model.cloister", inside="last:2").path)
    found = {name for name, value in model.named_parameters() if holds(view, value)}
    assert found == {"0.weight", "0.bias", "3.weight", "3.bias", "6.weight", "6.bias"}


@pytest.mark.parametrize(("inside", "bits"), [("last:3", 8), ("6,8", 32), ("all", 32)])
def test_other_hidden_weights_with_the_same_observables_change_no_bit(inside, bits):
    lowered, model = cases.small(bits=bits)
    other = cases.lowered_of(cases.scaled(copy.deepcopy(model), 6, 8, 4.0), cases.CONVNET_SHAPE, bits)
    devices = [Device(one, inside) for one in (lowered, other)]
    assert devices[0].view.sha256 == devices[1].view.sha256
    a, b = (device.observe(cases.pair(20), training=True) for device in devices)
    assert torch.equal(a.released, b.released)
    assert a.values.keys() == b.values.keys()
    assert all(torch.equal(a.values[name], b.values[name]) for name in a.values)
    assert a.gradients.keys() == b.gradients.keys()
    assert all(torch.equal(a.gradients[name], b.gradients[name]) for name in a.gradients)


# --- what is observed ---


def test_gradients_that_come_back_are_autograds():
    lowered, model = cases.small()
    device = Device(lowered, "3,8")
    seen = device.observe(cases.pair(6), training=True)
    kept = {}
    for place in (2, 7):  # what goes into layers 3 and 8
        model[place].register_forward_hook(lambda *a, at=place: kept.update({at: a[2]}))
    scores = model(seen.images)
    losses = functional.cross_entropy(scores, seen.labels, reduction="none")
    expected = torch.autograd.grad(losses.sum(), [kept[2], kept[7]])
    for part in model:
        part._forward_hooks.clear()
    given = list(seen.gradients.values())
    assert len(given) == 2
    for one, two in zip(given, expected, strict=True):
        torch.testing.assert_close(one, two)


def test_no_gradient_crosses_where_nothing_outside_needs_it():
    lowered, _ = cases.small()
    assert Device(lowered, "all").observe(cases.pair(3), training=True).gradients == {}
    assert Device(lowered, "last:4").observe(cases.pair(3)).gradients is None


@pytest.mark.parametrize(("release", "shape"), [("scores", (5, 5)), ("labels", (5,)), ("nothing", None)])
def test_outputs_are_seen_as_they_are_released(release, shape):
    lowered, model = cases.small()
    seen = Device(lowered, "last:1").observe(cases.pair(5), release=release)
    assert (None if seen.released is None else seen.released.shape) == shape
    outside = Device(lowered, "3").observe(cases.pair(5), release=release)
    torch.testing.assert_close(outside.released, model(outside.images).detach())  # nothing can hold it back


def test_observations_of_some_images_are_theirs():
    device = Device(cases.small()[0], "last:2")
    seen = device.observe(cases.pair(6), training=True)
    part = seen.take(np.array([4, 1]))
    assert len(part) == 2
    assert torch.equal(part.labels, seen.labels[[4, 1]])
    name = next(iter(seen.gradients))
    assert torch.equal(part.gradients[name], seen.gradients[name][[4, 1]])


def test_images_and_labels_that_do_not_fit_are_refused():
    images, labels = cases.pair(3)
    device = Device(cases.small()[0], "none")
    with pytest.raises(DataError, match=r"labels in \[0, 4\]"):
        device.observe((images, labels + 5))
    for wrong in ((images[:0], labels[:0]), (images[:2], labels), (images.astype(float), labels), (images[0], labels)):
        with pytest.raises(DataError, match="expected images"):
            device.observe(wrong)
