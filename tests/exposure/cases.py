"""Small models beyond those of `tests.models`, and targets that are quick to measure."""

import functools

import numpy as np
import torch
from torch import nn

from cloister.exposure.network import Network
from cloister.target import Target
from tests import models


class Attention(nn.Module):
    """A vision transformer of one block; `batch_first` decides whether images lie one after the other inside."""

    def __init__(self, *, batch_first):
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Conv2d(3, 8, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 31, 8))
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        y = self.norm(x)
        y = y if self.batch_first else y.transpose(0, 1)
        y = self.attention(y, y, y, need_weights=False)[0]
        x = self.drop(x) + (y if self.batch_first else y.transpose(0, 1))
        return self.fc(x[:, 0])


def build(name):
    """A model in evaluation mode, and its input shape."""
    if name.startswith("attention"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Attention(batch_first=name == "attention").eval(), (3, 12, 10)
    return models.build(name)


@functools.cache
def network(name, *, channels_last=False):
    """The model as a graph: tests share it, since it never changes."""
    return Network(*build(name), channels_last=channels_last)


def pair(shape, n, seed, n_classes=5):
    """Images and labels at random."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, *shape)).astype(np.float32), rng.integers(0, n_classes, n)


def target(model=None, shape=(6,), n=40, n_nonmembers=None, **fields):
    """A target with random members and non-members; by default three linear layers."""
    if model is None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))
    known = {"members": pair(shape, n, 0), "nonmembers": pair(shape, n_nonmembers or n, 1)}
    return Target(**{"model": model, "name": "small", "input_shape": shape, "n_classes": 5} | known | fields)
