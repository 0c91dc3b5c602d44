"""A victim and its shadows on scikit-learn's digits, a tenth of the labels wrong: all networks trained side by side."""

import dataclasses
import functools

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn import functional

N, N_POPULATION, N_SHADOWS, N_CLASSES = 800, 800, 12, 10


@dataclasses.dataclass(frozen=True)
class Run:
    """Samples that half of the models were trained on, and a population that none was.

    Attributes:
        labels: (800,), a tenth of them wrong.
        is_member: (800,) whether the victim was trained on it.
        logits: (800, 10) of the victim.
        shadow_logits: (12, 800, 10).
        is_in: (12, 800) the shadows', in complementary pairs.
        population_labels, population_logits, shadow_population_logits: likewise of the population.
    """

    labels: np.ndarray
    is_member: np.ndarray
    logits: np.ndarray
    shadow_logits: np.ndarray
    is_in: np.ndarray
    population_labels: np.ndarray
    population_logits: np.ndarray
    shadow_population_logits: np.ndarray


@functools.cache
def run():
    rng = np.random.default_rng(0)
    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(labels))[: N + N_POPULATION]
    images, labels = (images[order] / 16).astype(np.float32), labels[order].astype(np.int64)
    noisy = rng.permutation(len(labels))[: len(labels) // 10]
    labels[noisy] = (labels[noisy] + rng.integers(1, N_CLASSES, len(noisy))) % N_CLASSES
    is_in = np.zeros((N_SHADOWS + 1, N), dtype=bool)
    for pair in range(N_SHADOWS // 2 + 1):
        half = rng.permutation(N)[: N // 2]
        is_in[2 * pair, half] = True
        if pair < N_SHADOWS // 2:
            is_in[2 * pair + 1] = ~is_in[2 * pair]
    logits = train(torch.from_numpy(images), torch.from_numpy(labels), is_in)
    return Run(
        labels=labels[:N], is_member=is_in[-1], logits=logits[-1, :N], shadow_logits=logits[:-1, :N], is_in=is_in[:-1],
        population_labels=labels[N:], population_logits=logits[-1, N:], shadow_population_logits=logits[:-1, N:],
    )  # fmt: skip


def train(images, labels, is_in, epochs=60, batch=50):
    """Logits (M, n, 10) of M networks 64-256-10, each trained on its own samples."""
    generator = torch.Generator().manual_seed(0)
    own = torch.from_numpy(np.array([np.flatnonzero(row) for row in is_in]))
    n_models, n_own = own.shape
    first = torch.randn(n_models, 64, 256, generator=generator) * (2 / 64) ** 0.5
    second = torch.randn(n_models, 256, N_CLASSES, generator=generator) * (2 / 256) ** 0.5
    weights = [first, torch.zeros(n_models, 1, 256), second, torch.zeros(n_models, 1, N_CLASSES)]
    for weight in weights:
        weight.requires_grad_()
    optimizer = torch.optim.Adam(weights, 4e-3, foreach=True)
    for _ in range(epochs):
        shuffled = own.gather(1, torch.rand(n_models, n_own, generator=generator).argsort(1))
        for chosen in shuffled.split(batch, dim=1):
            loss = functional.cross_entropy(forward(weights, images[chosen]).flatten(0, 1), labels[chosen].flatten())
            optimizer.zero_grad()
            (loss * n_models).backward()
            optimizer.step()
    with torch.no_grad():
        return forward(weights, images.expand(n_models, -1, -1)).double().numpy()


def forward(weights, images):
    first, first_bias, second, second_bias = weights
    return torch.bmm((torch.bmm(images, first) + first_bias).relu(), second) + second_bias
