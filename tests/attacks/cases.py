"""Small targets, and their devices: lowered once."""

import functools

import numpy as np
import torch
from torch import nn

from cloister.protection import lower_target
from cloister.target import Target
from tests import models


def convnet():
    """Two convolutions and three linear layers; no batch norm, so that a layer's weights are its module's."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 5),
    )  # fmt: skip


CONVNET_SHAPE = (1, 8, 8)


@functools.cache
def small(*, bits=32, seed=0):
    """The convnet, lowered, and its module."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = convnet().eval()
    return lowered_of(model, CONVNET_SHAPE, bits), model


@functools.cache
def model_of(name, bits):
    """A model of `tests.models`, lowered."""
    return lowered_of(*models.build(name), bits)


def lowered_of(model, shape, bits=32, seed=3):
    target = Target(model=model, name="small", input_shape=shape, n_classes=5)
    return lower_target(target, bits=bits, calibration=models.images(shape, 16, seed).numpy())


def pair(n, shape=CONVNET_SHAPE, seed=1, n_classes=5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, *shape)).astype(np.float32), rng.integers(0, n_classes, n)


def scaled(model, first, second, factor):
    """The same function with other weights: powers of two leave every bit of what crosses as it is."""
    with torch.no_grad():
        model[first].weight.mul_(factor)
        model[first].bias.mul_(factor)
        model[second].weight.div_(factor)
    return model
