"""Fine-tuning of one layer, with all others frozen, on activations that the frozen prefix gave once."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from cloister.errors import DataError, TargetError, UnsupportedModel, UserError
from cloister.exposure.cut import Crossing, Cut
from cloister.exposure.document import Fit, Reading, Run, Separation, Variant
from cloister.exposure.network import Group, Network
from cloister.exposure.statistics import separation
from cloister.units import format_bytes

__all__ = [
    "Activations",
    "Samples",
    "Settings",
    "draw_anew",
    "fine_tune",
    "initial_tensors",
    "read_whole",
    "reading_epochs",
    "seed_of",
]

#: Images at a time where nothing is learnt.
_EVALUATION_BATCH = 256
#: Part of the seed of a fit's orders.
_ORDERS: dict[Fit, int] = {"p": 0, "r": 1, "half": 2}
_Indices = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How every layer is fine-tuned.

    Attributes:
        epochs: passes over S, or over S and T.
        learning_rate: of Adam, constant.
        batch_size: largest number of images in a step.
        seed: of orders, and of weights that are drawn anew.
        precision: `float32` or `bfloat16`.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    seed: int
    precision: str

    @contextlib.contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Matrix products in bfloat16, if that is asked for."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
            yield


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """S and T, one after the other.

    Attributes:
        images: (N, …) float32, in the network's memory format.
        labels: (N,) int64.
        n_members: how many are S; the others are T.
    """

    images: Tensor
    labels: Tensor
    n_members: int

    def trained_on(self, fit: Fit, *, seed: int, repeat: int) -> _Indices:
        """Indices of what a fine-tuning sees."""
        if fit == "half":
            return np.concatenate(self._halves(seed, repeat, 0))
        return np.arange(self.n_members if fit == "p" else len(self.labels))

    def held_out(self, *, seed: int, repeat: int) -> list[_Indices]:
        """Members and non-members that the fit `half` does not see."""
        return self._halves(seed, repeat, 1)

    def _halves(self, seed: int, repeat: int, which: int) -> list[_Indices]:
        """A half of S and a half of T, at random for each repeat; the first has the odd one."""
        rng = np.random.default_rng(np.random.SeedSequence([seed, repeat, 3]))
        s, t = np.arange(self.n_members), np.arange(self.n_members, len(self.labels))
        return [np.array_split(rng.permutation(part), 2)[which] for part in (s, t)]


class Activations:
    """What crosses a cut, of all images: in memory, or in mapped files if it takes more than a bound.

    Args:
        cut: the cut model.
        samples: all images.
        settings: of the arithmetic and the number of images at a time.
        folder: for files, which have no name there and go with the object.
        bound_bytes: the most to hold in memory.

    Raises:
        UserError: the folder has no room.
    """

    def __init__(self, cut: Cut, samples: Samples, settings: Settings, *, folder: Path, bound_bytes: int) -> None:
        self._crossings = cut.crossings
        self.on_disk = False
        if cut.prefix is None:
            self._rows = [cut.crossings[0].rows_of(samples.images)]
            return
        n_images = len(samples.images)
        self.on_disk = n_images * sum(one.row * one.dtype.itemsize for one in cut.crossings) > bound_bytes
        self._rows = [
            _mapped_rows(n_images, one, folder) if self.on_disk else torch.empty(n_images, one.row, dtype=one.dtype)
            for one in cut.crossings
        ]
        with torch.no_grad(), settings.arithmetic():
            for batch in np.array_split(np.arange(n_images), math.ceil(n_images / settings.batch_size)):
                part = slice(int(batch[0]), int(batch[-1]) + 1)
                values = cut.prefix(samples.images[part])
                for rows, one, value in zip(self._rows, cut.crossings, values, strict=True):
                    rows[part] = one.rows_of(value)

    def take(self, indices: _Indices | slice) -> list[Tensor]:
        """The values of some images."""
        chosen = indices if isinstance(indices, slice) else torch.from_numpy(indices)
        return [one.value_of(rows[chosen]) for one, rows in zip(self._crossings, self._rows, strict=True)]


def _mapped_rows(n_images: int, crossing: Crossing, folder: Path) -> Tensor:
    """Rows in a file that nothing is left of once they go, even if the process is killed."""
    n = n_images * crossing.row
    file, path = tempfile.mkstemp(prefix="activations-", dir=folder)
    try:
        # All room now: a write into a mapped hole of a full disk would end the process.
        os.posix_fallocate(file, 0, n * crossing.dtype.itemsize)
        return torch.from_file(path, shared=True, size=n, dtype=crossing.dtype).view(n_images, crossing.row)
    except OSError as error:
        raise UserError(
            f"`{folder}` has no room for {format_bytes(n * crossing.dtype.itemsize)} of activations: {error.strerror}",
            "name another folder with --state, measure fewer samples, or raise `cache_bytes`",
        ) from error
    finally:
        os.close(file)
        os.unlink(path)


def reading_epochs(epochs: int) -> tuple[int, ...]:
    """After which epochs a model is read: 1, 2, 5, 10, 20, 50, … and the last."""
    series = (factor * 10**power for power in range(len(str(epochs))) for factor in (1, 2, 5))
    return (*(epoch for epoch in series if epoch < epochs), epochs)


def initial_tensors(network: Network, group: Group, *, seed: list[int] | None = None) -> dict[str, Tensor]:
    """Copies of a layer's parameters and buffers; with a seed, drawn anew."""
    tensors = {name: network.tensors[name].clone() for name in (*group.parameters, *group.buffers)}
    if seed is not None:
        generator = torch.Generator().manual_seed(seed_of(seed))
        for name, tensor in tensors.items():
            draw_anew(name, tensor, generator)
    return tensors


def seed_of(entropy: list[int]) -> int:
    """A seed for torch, in [0, 2**63)."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def draw_anew(name: str, tensor: Tensor, generator: torch.Generator) -> None:
    """Forget what a tensor holds.

    Weights of two axes or more are drawn as He et al. (2015) do, biases become 0, other vectors 1; running means become
    0, running variances 1.
    """
    with torch.no_grad():
        if tensor.dim() >= 2:
            # Into plain memory first: the same numbers whatever the memory format is.
            drawn = torch.empty(tensor.shape).normal_(
                0, math.sqrt(2 / math.prod(tensor.shape[1:])), generator=generator
            )
            tensor.copy_(drawn)
        else:
            tensor.fill_(0 if name.endswith(("bias", "running_mean")) else 1)


def fine_tune(
    cut: Cut,
    activations: Activations,
    samples: Samples,
    start: dict[str, Tensor],
    settings: Settings,
    *,
    variant: Variant,
    repeat: int,
    fit: Fit,
    on_epoch: Callable[[int], None],
    replaced: dict[str, Tensor] | None = None,
) -> Run:
    """Fine-tune one layer, and read loss and accuracy on S and T on the way.

    Args:
        cut: the model, cut before the layer.
        activations: of all samples.
        samples: S and T.
        start: the layer's parameters and buffers; changed in place.
        settings: how.
        variant: of which model it is, for the result.
        repeat: counted from 0; each has orders of its own.
        fit: on S, on S and T, or on a half of both.
        on_epoch: told the number of each epoch that is done.
        replaced: for fit `half`, the layer's parameters and buffers that these take the place of.

    Raises:
        UserError: the loss is not finite.
    """
    began = time.perf_counter()
    tuning = _Tuning(cut, activations, samples, start, settings)
    at = set(reading_epochs(settings.epochs))
    seen = samples.trained_on(fit, seed=settings.seed, repeat=repeat)
    n_steps = math.ceil(len(seen) / settings.batch_size)
    n_steps_of_p = settings.epochs * math.ceil(samples.n_members / settings.batch_size)
    before = [tensor.detach().clone() for tensor in tuning.parameters]
    readings, equal_steps = [tuning.read(0)], None
    for epoch in range(1, settings.epochs + 1):
        entropy = [settings.seed, repeat, _ORDERS[fit], epoch]
        order = np.random.default_rng(np.random.SeedSequence(entropy)).permutation(seen)
        for step, batch in enumerate(np.array_split(order, n_steps), start=(epoch - 1) * n_steps + 1):
            tuning.step(batch)
            if fit == "r" and step == n_steps_of_p:
                equal_steps = tuning.read(epoch)
        if epoch in at:
            readings.append(_check_finite(tuning.read(epoch), cut.group.name, repeat))
        on_epoch(epoch)
    return Run(
        variant=variant,
        layer=cut.group.name,
        repeat=repeat,
        fit=fit,
        readings=tuple(readings),
        equal_steps=(equal_steps or readings[-1]) if fit == "r" else None,
        has_gradient=any(not torch.equal(a, b) for a, b in zip(before, tuning.parameters, strict=True)),
        seconds=time.perf_counter() - began,
        held_out=None if replaced is None else _separation(tuning, replaced, repeat),
    )


def _separation(tuning: _Tuning, replaced: dict[str, Tensor], repeat: int) -> Separation:
    """How far held-out members lie above held-out non-members in what their loss gains by the replacement."""
    gained = tuning.losses() - tuning.losses(replaced)
    members, nonmembers = tuning.samples.held_out(seed=tuning.settings.seed, repeat=repeat)
    return separation(gained[members], gained[nonmembers])


class _Tuning:
    """A layer's tensors with their optimizer."""

    def __init__(
        self, cut: Cut, activations: Activations, samples: Samples, start: dict[str, Tensor], settings: Settings
    ) -> None:
        self._cut, self._activations, self.samples, self.settings = cut, activations, samples, settings
        self.parameters = [start[name].requires_grad_() for name in cut.group.parameters]
        self._tensors = [*self.parameters, *(start[name] for name in cut.group.buffers)]
        self._optimizer = torch.optim.Adam(self.parameters, lr=settings.learning_rate, fused=True)

    def step(self, batch: _Indices) -> None:
        """Learn from one batch; without a gradient, do nothing."""
        values = self._activations.take(batch)
        with self.settings.arithmetic():
            logits = self._cut.training(len(batch), *values, *self._tensors)
        loss = functional.cross_entropy(logits.float(), self.samples.labels[torch.from_numpy(batch)])
        if loss.requires_grad:
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()

    def read(self, epoch: int) -> Reading:
        """Loss and accuracy on S and T."""
        return _reading(self._logits(self._tensors), self.samples, epoch)

    def losses(self, tensors: dict[str, Tensor] | None = None) -> _Floats:
        """The loss of each image of S and T, in nats; with other parameters and buffers if they are given."""
        return _losses(self._logits(self._tensors if tensors is None else list(tensors.values())), self.samples)

    def _logits(self, tensors: list[Tensor]) -> Tensor:
        parts = []
        with torch.no_grad(), self.settings.arithmetic():
            for part in _parts(len(self.samples.labels)):
                values = self._activations.take(part)
                n_images = min(part.stop, len(self.samples.labels)) - part.start
                parts.append(self._cut.evaluation(n_images, *values, *tensors).float())
        return torch.cat(parts)


def _parts(n: int) -> Iterator[slice]:
    for start in range(0, n, _EVALUATION_BATCH):
        yield slice(start, start + _EVALUATION_BATCH)


def read_whole(network: Network, samples: Samples, settings: Settings) -> Reading:
    """Loss and accuracy of a model as it is.

    Raises:
        TargetError: it gives no logits (N, K), or its loss is not finite.
        UnsupportedModel: its answer for an image depends on the others.
        DataError: labels that are no classes of it.
    """
    whole = network.part((network.output,))
    with torch.no_grad(), settings.arithmetic():
        logits = torch.cat([whole(samples.images[part])[0].float() for part in _parts(len(samples.labels))])
        two = whole(samples.images[:2])[0].float()
    _check_classes(logits, samples.labels)
    if not torch.allclose(
        two, logits[:2], rtol=1e-2, atol=1e-2 * float(logits.nan_to_num().abs().max()), equal_nan=True
    ):
        raise UnsupportedModel(
            "the model mixes images: its answer for one depends on the others of the batch",
            [("(model)", "batch", "another answer in another batch")],
            "make it work image by image, for example with running statistics in its batch norms",
        )
    reading = _reading(logits, samples, 0)
    if not math.isfinite(reading.loss_members + reading.loss_nonmembers):
        raise TargetError("exposure: expected a model with a finite loss, but it is not", "check its weights")
    return reading


def _check_classes(logits: Tensor, labels: Tensor) -> None:
    if logits.dim() != 2:
        raise TargetError(f"exposure: expected logits (N, K), but the model gives {tuple(logits.shape)}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise DataError(
            f"exposure: expected labels in [0, {logits.shape[1] - 1}], the model's classes, "
            f"but they lie in [{low}, {high}]"
        )


def _losses(logits: Tensor, samples: Samples) -> _Floats:
    losses: _Floats = functional.cross_entropy(logits, samples.labels, reduction="none").double().numpy()
    return losses


def _reading(logits: Tensor, samples: Samples, epoch: int) -> Reading:
    losses = _losses(logits, samples)
    right = (logits.argmax(1) == samples.labels).double().numpy()
    n = samples.n_members
    return Reading(
        epoch=epoch,
        loss_members=float(losses[:n].mean()),
        loss_nonmembers=float(losses[n:].mean()),
        accuracy_members=float(right[:n].mean()),
        accuracy_nonmembers=float(right[n:].mean()),
        loss_error=_error_of_difference(losses[:n], losses[n:]),
        accuracy_error=_error_of_difference(right[:n], right[n:]),
    )


def _error_of_difference(a: _Floats, b: _Floats) -> float:
    """Standard error of the difference of two means."""
    return math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))


def _check_finite(reading: Reading, layer: str, repeat: int) -> Reading:
    if not math.isfinite(reading.loss_members + reading.loss_nonmembers):
        raise UserError(
            f"layer `{layer}`, repeat {repeat + 1}: the loss is not finite after epoch {reading.epoch}",
            "lower the learning rate",
        )
    return reading
