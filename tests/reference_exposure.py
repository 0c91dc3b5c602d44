"""Fine-tuning of one layer as one would write it down: the whole model, eagerly, image after image from the start."""

from __future__ import annotations

import contextlib
import copy
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

EVALUATION_BATCH = 256


def freeze_all_but(model: nn.Module, parameters: list[str]) -> list[nn.Parameter]:
    """Evaluation mode and no gradients, but for these parameters and the batch norms whose scale is one of them."""
    model.eval()
    named = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in named.items():
        parameter.requires_grad_(name in parameters)
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(f"{name}.weight" in parameters)
    return [named[name] for name in parameters]


def logits_of(model: nn.Module, images: torch.Tensor, precision: str) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        return model(images).float()


def read(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, n_members: int, precision: str):
    """(loss on S, loss on T, accuracy on S, accuracy on T)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad():
        logits = torch.cat([logits_of(model, part, precision) for part in images.split(EVALUATION_BATCH)])
    for module, mode in modes.items():
        module.training = mode
    losses = functional.cross_entropy(logits, labels, reduction="none").double().numpy()
    right = (logits.argmax(1) == labels).double().numpy()
    return tuple(float(part.mean()) for values in (losses, right) for part in (values[:n_members], values[n_members:]))


@contextlib.contextmanager
def _one_path_of_attention():
    """Where nothing before it learns, attention would take other kernels than where it does."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def halves(n_members, n, seed, repeat):
    """Both halves of the members' indices, and both of the others'."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, repeat, 3]))
    return [np.array_split(rng.permutation(np.arange(*ends)), 2) for ends in ((0, n_members), (n_members, n))]


def draw_anew(model, parameters, seed, repeat):
    """He's weights, and biases of 0."""
    drawn = int(np.random.SeedSequence([seed, repeat, 4]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    generator = torch.Generator().manual_seed(drawn)
    with torch.no_grad():
        for name in parameters:
            tensor = model.get_parameter(name)
            if tensor.dim() == 1:
                tensor.zero_()
            else:
                tensor.copy_(torch.empty_like(tensor).normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator))


def memorisation(model, parameters, images, labels, n_members, *, seed, repeat, **settings):
    """The share of pairs in which the member's loss gains more than the non-member's, less that of the other pairs."""
    tuned, _ = fine_tune(
        model, parameters, images, labels, n_members, fit="half", seed=seed, repeat=repeat, precision="float32",
        **settings,
    )  # fmt: skip
    with torch.no_grad():
        before, after = (functional.cross_entropy(one(images), labels, reduction="none") for one in (model, tuned))
    gained = (after.double() - before.double()).numpy()
    (_, members), (_, others) = halves(n_members, len(labels), seed, repeat)
    return np.sign(gained[members][:, None] - gained[others]).mean()


@_one_path_of_attention()
def fine_tune(model, parameters, images, labels, n_members, *, fit, epochs, lr, batch_size, seed, repeat, precision):
    """Returns the tuned copy, and a reading before and after every epoch; `half` begins with the layer drawn anew."""
    layout = torch.channels_last if precision == "bfloat16" and images.dim() == 4 else torch.contiguous_format
    model = copy.deepcopy(model).to(memory_format=layout)
    images = images.contiguous(memory_format=layout)
    trained = freeze_all_but(model, parameters)
    optimizer = torch.optim.Adam(trained, lr=lr, fused=True)
    if fit == "half":
        seen = np.concatenate([half for half, _ in halves(n_members, len(labels), seed, repeat)])
        draw_anew(model, parameters, seed, repeat)
    else:
        seen = np.arange(n_members if fit == "p" else len(labels))
    readings = [read(model, images, labels, n_members, precision)]
    for epoch in range(1, epochs + 1):
        seeds = np.random.SeedSequence([seed, repeat, {"p": 0, "r": 1, "half": 2}[fit], epoch])
        order = np.random.default_rng(seeds).permutation(seen)
        for batch in np.array_split(order, math.ceil(len(seen) / batch_size)):
            chosen = torch.from_numpy(batch)
            loss = functional.cross_entropy(
                logits_of(model, images[chosen].contiguous(memory_format=layout), precision), labels[chosen]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        readings.append(read(model, images, labels, n_members, precision))
    return model, readings
