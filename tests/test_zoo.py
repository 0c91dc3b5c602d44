"""The zoo has the published sizes and names, and leaves the global random state alone."""

import pytest
import torch
from torch import nn

from cloister import zoo
from cloister.errors import TargetError

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (2, 9, 17)]


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "n_classes", "expected"),
    [
        ("vgg7", (1, 28, 28), 10, 54_010),
        ("alexnet", (3, 32, 32), 100, 2_495_396),
        ("vgg11", (3, 32, 32), 100, 9_539_940),
        ("vgg16", (3, 32, 32), 100, 15_037_092),
        ("resnet20", (3, 32, 32), 100, 278_324),
    ],
)
def test_build_has_the_published_parameter_count(name, shape, n_classes, expected):
    assert count(zoo.build(name, input_shape=shape, n_classes=n_classes)) == expected


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "vgg16", "resnet20"])
def test_larger_images_need_no_more_parameters(name):
    small = zoo.build(name, input_shape=(3, 32, 32), n_classes=100)
    large = zoo.build(name, input_shape=(3, 64, 64), n_classes=100)
    assert count(small) == count(large)


@pytest.mark.parametrize("name", zoo.NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_build_maps_images_to_finite_logits(name, shape):
    model = zoo.build(name, input_shape=shape, n_classes=7)
    with torch.inference_mode():
        logits = model(torch.ones(2, *shape))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    assert not model.training


@pytest.mark.parametrize("name", zoo.NAMES)
def test_layer_names_do_not_depend_on_the_input_shape(name):
    models = [zoo.build(name, input_shape=shape, n_classes=4) for shape in SHAPES]
    assert len({tuple(model.state_dict()) for model in models}) == 1


def test_layer_names_are_pytorchs():
    vgg = zoo.build("vgg7", input_shape=(1, 28, 28), n_classes=10).state_dict()
    assert {name.split(".")[0] for name in vgg} == {"features", "classifier"}
    resnet = zoo.build("resnet20", input_shape=(3, 32, 32), n_classes=10).state_dict()
    assert {"conv1.weight", "layer1.0.conv1.weight", "layer2.0.shortcut.0.weight", "fc.bias"} <= set(resnet)
    assert "conv1.bias" not in resnet


def test_build_is_seeded_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    one, same, other = (zoo.build("vgg7", input_shape=(1, 8, 8), n_classes=10, seed=s) for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.features[0].weight, same.features[0].weight)
    assert not torch.equal(one.features[0].weight, other.features[0].weight)


def test_weights_are_drawn_as_he_et_al():
    weight = zoo.build("vgg11", input_shape=(3, 32, 32), n_classes=10).features[-4].weight
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(TargetError, match="resnet20") as caught:
        zoo.build("resnet-20", input_shape=(3, 32, 32), n_classes=10)
    assert caught.value.hint.startswith("did you mean `zoo:resnet20`")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_shape": (28, 28)}, "channels, height, width"),
        ({"input_shape": (1, 7, 28)}, "sides in"),
        ({"input_shape": (0, 28, 28)}, "at least one channel"),
        ({"input_shape": (1, 28, 100_000)}, "sides in"),
        ({"n_classes": 1}, "at least 2 classes"),
        ({"seed": -1}, "seed"),
    ],
)
def test_build_refuses_impossible_sizes(change, message):
    with pytest.raises(TargetError, match=message):
        zoo.build("vgg7", **({"input_shape": (1, 28, 28), "n_classes": 10} | change))
