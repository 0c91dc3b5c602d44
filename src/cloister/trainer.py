"""Training of victims: seeded, resumable to the bit, without augmentation, so that they memorise.

The recipe is Adam with the one-cycle schedule (Smith and Topin, 2018). Every epoch draws its order and its
dropout masks from the seed and the epoch's number alone; so the state between two epochs is weights, optimizer
and schedule, and a run that was killed ends as if it had not been.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from cloister.checkpoint import Checkpoint, load_weights, read_tensors, save_checkpoint, write_tensors
from cloister.data import Dataset, Indices, Part, split
from cloister.errors import DataError, TargetError, UserError
from cloister.outputs import check_output
from cloister.progress import Progress
from cloister.target import Target

__all__ = [
    "Precision",
    "TrainResult",
    "choose_precision",
    "evaluate",
    "hash_weights",
    "limited_threads",
    "train",
    "train_again",
]

Precision = Literal["auto", "float32", "bfloat16"]

_DEFAULT_LEARNING_RATE = 2e-3
_EVALUATION_BATCH = 256


class TrainResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came out of a training: the document of `cloister train -f json`.

    Attributes:
        schema: name and version of the document.
        path: of the weights.
        model: name of the target.
        data: name of the data set.
        n_members: images trained on.
        n_epochs: epochs trained.
        seed: of the cut and of training.
        learning_rate: its peak.
        batch_size: largest number of images in one step.
        precision: `float32` or `bfloat16` arithmetic; the weights are float32.
        train_accuracy: on the members, in [0, 1].
        test_accuracy: on the test part, in [0, 1].
        generalization_gap: their difference, in [-1, 1].
        seconds: wall time, over all runs if it was interrupted.
    """

    schema: Literal["cloister.train/1"] = "cloister.train/1"
    path: str
    model: str
    data: str
    n_members: int
    n_epochs: int
    seed: int
    learning_rate: float
    batch_size: int
    precision: str
    train_accuracy: float
    test_accuracy: float
    generalization_gap: float
    seconds: float


class _Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All that the result depends on, apart from the number of threads and the machine."""

    model: str
    initial_sha256: str
    data: str
    data_sha256: str
    n_members: int
    epochs: int
    seed: int
    lr: float
    batch_size: int
    precision: str

    @property
    def n_steps_per_epoch(self) -> int:
        return math.ceil(self.n_members / self.batch_size)


class _Saved(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a resume state that is no tensor."""

    settings: _Settings
    n_epochs_done: int
    seconds: float
    schedule: dict[str, Any]
    param_groups: list[dict[str, Any]]


class _Run:
    """Model, optimizer and schedule between two epochs."""

    def __init__(self, model: nn.Module, settings: _Settings, device: torch.device) -> None:
        layout = torch.channels_last if settings.precision == "bfloat16" else torch.contiguous_format
        self.settings = settings
        self.layout = layout
        self.device = device
        self.model = copy.deepcopy(model).to(device=device, memory_format=layout)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.lr, fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            max_lr=settings.lr,
            total_steps=settings.epochs * settings.n_steps_per_epoch,
        )
        self.n_epochs_done = 0
        self.seconds = 0.0

    def step(self, images: Tensor, labels: Tensor) -> float:
        """Learn from one batch and return its loss."""
        is_bf16 = self.settings.precision == "bfloat16"
        images, labels = images.to(self.device), labels.to(self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_bf16):
            logits = self.model(images.contiguous(memory_format=self.layout))
        loss = functional.cross_entropy(logits.float(), labels)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def save(self, path: Path) -> None:
        """Write everything that the next epoch depends on."""
        optimizer = self.optimizer.state_dict()
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, state in optimizer["state"].items():
            tensors |= {f"optimizer.{index}.{key}": tensor for key, tensor in state.items()}
        saved = _Saved(
            settings=self.settings,
            n_epochs_done=self.n_epochs_done,
            seconds=self.seconds,
            schedule=self.schedule.state_dict(),
            param_groups=optimizer["param_groups"],
        )
        write_tensors(path, tensors, msgspec.json.encode(saved).decode())

    def restore(self, tensors: dict[str, Tensor], saved: _Saved) -> None:
        """Continue where `save` was called; the settings are the same."""
        weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
        load_weights(self.model, weights, "resume state")
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({"state": state, "param_groups": saved.param_groups})
        self.schedule.load_state_dict(saved.schedule)
        self.n_epochs_done = saved.n_epochs_done
        self.seconds = saved.seconds


def train(
    target: Target,
    dataset: Dataset,
    *,
    out: Path | str,
    epochs: int,
    n_members: int | None = None,
    seed: int = 0,
    lr: float | None = None,
    batch_size: int = 64,
    precision: Precision = "auto",
    n_threads: int | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> TrainResult:
    """Train a copy of a target's model on a part of the training set: the members.

    The state is kept in `OUT.resume` after every epoch, and removed at the end. The same call after an
    interruption continues from it, and gives the same weights on the same machine with the same number of
    threads. Nothing is augmented: a victim should memorise.

    Args:
        target: the model, with its initial weights; it is not changed.
        dataset: images of the target's input shape.
        out: where to write the weights, ending in `.safetensors`; see `Checkpoint` for its metadata.
        epochs: passes over the members, at least 1.
        n_members: images to train on, in [2, n_train - 1]; half of the training part if omitted.
        seed: of the cut (see `data.split`), of the order and of dropout, in [0, 2**63).
        lr: peak of the learning rate; 0.002 if omitted.
        batch_size: largest number of images in one step, at least 2.
        precision: `auto` takes `bfloat16` where the processor has matrix units for it (AMX), else `float32`.
        n_threads: threads of PyTorch during the call; as they are if omitted.
        progress: told after every step.
        force: replace `out`, and drop a state that was begun with other settings.

    Returns:
        Accuracies, measured in float32, and the settings that were used.

    Raises:
        OutputExists: `out` is there and `force` is not set.
        UserError: `out` is a folder, or lies in none that takes it.
        TargetError: the target cannot be trained, or a file cannot be written.
        DataError: the data set does not fit the target.
        UserError: settings out of range, a state begun with other settings, or a loss that is not finite.
    """
    out = Path(out)
    check_output(out, force=force)
    n_members = dataset.n_train // 2 if n_members is None else n_members
    lr = _DEFAULT_LEARNING_RATE if lr is None else lr
    _check_settings(out, epochs, n_members, seed, lr, batch_size, n_threads)
    model = _check_target(target, dataset)
    members, _ = split(dataset.n_train, n_members=n_members, seed=seed)
    settings = _Settings(
        model=target.name,
        initial_sha256=hash_weights(model),
        data=dataset.name,
        data_sha256=dataset.sha256,
        n_members=n_members,
        epochs=epochs,
        seed=seed,
        lr=lr,
        batch_size=batch_size,
        precision=choose_precision(precision),
    )
    resume = out.with_name(f"{out.name}.resume")
    with limited_threads(n_threads), torch.random.fork_rng(devices=[]):
        run = _begin(model, settings, resume, torch.device("cpu"), force=force)
        while run.n_epochs_done < epochs:
            _train_epoch(run, dataset, members, progress)
            run.save(resume)
        result = _finish(run, dataset, members, out)
    resume.unlink(missing_ok=True)
    return result


class _Pair:
    """Images and labels by index, as `_train_epoch` takes them."""

    def __init__(self, images: npt.NDArray[np.float32], labels: Indices) -> None:
        self._images, self._labels = images, labels

    def images(self, indices: Indices) -> npt.NDArray[np.float32]:
        return self._images[indices]

    def labels(self, indices: Indices) -> Indices:
        return self._labels[indices]


def train_again(
    model: nn.Module,
    images: npt.NDArray[np.float32],
    labels: Indices,
    recipe: Checkpoint,
    *,
    resume: Path,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> nn.Module:
    """Train a model as another one was, on other images.

    Args:
        model: with its initial weights; it is not changed.
        images: (N, *input_shape) float32, all of which are trained on.
        labels: (N,) int64.
        recipe: whose epochs, learning rate, batch size, precision and seed to use.
        resume: where the state is kept after every epoch; removed at the end.
        device: of PyTorch, to train on.
        progress: told after every step.

    Returns:
        The trained model, in evaluation mode, on that device.

    Raises:
        UserError: a loss that is not finite.
    """
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    settings = _Settings(
        model=recipe.model,
        initial_sha256=hash_weights(model),
        data=recipe.data,
        data_sha256=digest.hexdigest(),
        n_members=len(images),
        epochs=recipe.n_epochs,
        seed=recipe.seed,
        lr=recipe.learning_rate,
        batch_size=recipe.batch_size,
        precision=recipe.precision,
    )
    device = torch.device(device)
    with _own_generators(device):
        run = _begin(model, settings, resume, device, force=True)
        while run.n_epochs_done < settings.epochs:
            _train_epoch(run, _Pair(images, labels), np.arange(len(images)), progress)
            run.save(resume)
    resume.unlink(missing_ok=True)
    return run.model.to(memory_format=torch.contiguous_format).eval()  # type: ignore[no-any-return]


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    *,
    part: Part = "test",
    indices: Indices | None = None,
    batch_size: int = _EVALUATION_BATCH,
) -> float:
    """Measure top-1 accuracy in evaluation mode and float32.

    Args:
        model: maps images (N, C, H, W) to logits (N, K); left in the mode it was in.
        dataset: images and labels.
        part: `train` or `test`.
        indices: (n,) into the part, at least one; all of it if omitted.
        batch_size: images at a time, at least 1.

    Returns:
        Share of images whose largest logit is at the label, in [0, 1].
    """
    if indices is None:
        indices = np.arange(len(dataset.labels(part=part)))
    was_training = model.training
    model.eval()
    n_right = 0
    try:
        with torch.inference_mode():
            for start in range(0, len(indices), batch_size):
                batch = indices[start : start + batch_size]
                logits = model(torch.from_numpy(dataset.images(batch, part)))  # (N, K)
                labels = torch.from_numpy(dataset.labels(batch, part))
                n_right += int((logits.argmax(dim=1) == labels).sum())
    finally:
        model.train(was_training)
    return n_right / len(indices)


def _check_settings(
    out: Path,
    epochs: int,
    n_members: int,
    seed: int,
    lr: float,
    batch_size: int,
    n_threads: int | None,
) -> None:
    checks = [
        (out.suffix == ".safetensors", f"an output that ends in .safetensors, but got `{out}`"),
        (epochs >= 1, f"at least 1 epoch, but got {epochs}"),
        (n_members >= 2, f"at least 2 members, but got {n_members}"),
        (0 <= seed < 2**63, f"a seed in [0, 2**63), but got {seed}"),
        (0 < lr < math.inf, f"a positive learning rate, but got {lr}"),
        (batch_size >= 2, f"a batch size of at least 2, but got {batch_size}"),
        (n_threads is None or n_threads >= 1, f"at least 1 thread, but got {n_threads}"),
    ]
    problems = [problem for holds, problem in checks if not holds]
    if problems:
        raise UserError("expected " + "; expected ".join(problems))


def _check_target(target: Target, dataset: Dataset) -> nn.Module:
    if not isinstance(target.model, nn.Module):
        raise TargetError(
            f"target `{target.name}` is an exported program, which cannot be trained", "give its nn.Module"
        )
    if not any(parameter.requires_grad for parameter in target.model.parameters()):
        raise TargetError(f"target `{target.name}` has no parameters to train")
    if tuple(target.input_shape) != dataset.input_shape:
        raise DataError(
            f"target `{target.name}` expects images {tuple(target.input_shape)}, "
            f"but data set `{dataset.name}` has {dataset.input_shape}"
        )
    if target.n_classes is not None and target.n_classes != dataset.n_classes:
        raise DataError(
            f"target `{target.name}` expects {target.n_classes} classes, "
            f"but data set `{dataset.name}` has {dataset.n_classes}"
        )
    return target.model


def choose_precision(precision: Precision) -> str:
    """What `auto` stands for on this machine: `float32` or `bfloat16`."""
    if precision != "auto":
        return precision
    # Emulated bfloat16 is slower than float32; on AMX it trains small nets up to three times as fast.
    return "bfloat16" if torch.cpu.get_capabilities().get("amx_bf16") else "float32"


def hash_weights(model: nn.Module) -> str:
    """Hash of names, types, shapes and values of a model's state, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def limited_threads(n_threads: int | None) -> Iterator[None]:
    """A number of PyTorch's threads for a while; as they are if None."""
    before = torch.get_num_threads()
    if n_threads is not None:
        torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _own_generators(device: torch.device) -> Iterator[None]:
    """Generators of PyTorch for a while, those of the processor and of a device; afterwards they are as before."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        if device.type != "cpu":
            stack.enter_context(torch.random.fork_rng(devices=[device], device_type=device.type))
        yield


def _begin(model: nn.Module, settings: _Settings, resume: Path, device: torch.device, *, force: bool) -> _Run:
    """A new run, or the one that was interrupted."""
    run = _Run(model, settings, device)
    if not resume.exists():
        return run
    hint = f"delete `{resume}`, or use --force, to begin anew"
    try:
        tensors, document = read_tensors(resume)
        saved = msgspec.json.decode(document or "", type=_Saved)
        differing = _differences(saved.settings, settings)
        if not differing:
            run.restore(tensors, saved)
    except (TargetError, msgspec.DecodeError, ValueError, KeyError) as error:
        if force:
            return _Run(model, settings, device)
        raise UserError(f"cannot resume from `{resume}`: {error}", hint) from error
    if differing and not force:
        raise UserError(f"`{resume}` was begun with other settings: {'; '.join(differing)}", hint)
    return run


def _differences(before: _Settings, now: _Settings) -> list[str]:
    return [
        f"{name} {getattr(before, name)}, now {getattr(now, name)}"
        for name in _Settings.__struct_fields__
        if getattr(before, name) != getattr(now, name)
    ]


def _train_epoch(run: _Run, dataset: Dataset | _Pair, members: Indices, progress: Progress | None) -> None:
    settings, epoch = run.settings, run.n_epochs_done
    began = time.perf_counter()
    seeds = np.random.SeedSequence([settings.seed, epoch])
    # The caller has forked the global generators, which dropout draws from.
    _seed(int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1)), run.device)
    order = np.random.default_rng(seeds).permutation(members)
    n_steps = settings.n_steps_per_epoch
    losses = []
    run.model.train()
    # Nearly equal batches: a last one of a single image would break batch norm.
    for step, batch in enumerate(np.array_split(order, n_steps), start=1):
        images = torch.from_numpy(dataset.images(batch))  # (N, C, H, W)
        losses.append(run.step(images, torch.from_numpy(dataset.labels(batch))))
        if progress is not None:
            text = f"epoch {epoch + 1}/{settings.epochs}, loss {losses[-1]:.4f}"
            progress.update(epoch * n_steps + step, settings.epochs * n_steps, text)
    weights = run.model.state_dict().values()
    if not (math.isfinite(sum(losses)) and all(tensor.isfinite().all() for tensor in weights)):
        raise UserError(f"loss or weights are not finite in epoch {epoch + 1}", "lower the learning rate")
    run.n_epochs_done += 1
    run.seconds += time.perf_counter() - began


def _seed(seed: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _finish(run: _Run, dataset: Dataset, members: Indices, out: Path) -> TrainResult:
    """Measure, write the weights, and report."""
    began = time.perf_counter()
    settings = run.settings
    model = run.model.to(memory_format=torch.contiguous_format)
    train_accuracy = evaluate(model, dataset, part="train", indices=members)
    test_accuracy = evaluate(model, dataset)
    checkpoint = Checkpoint(
        model=settings.model,
        input_shape=dataset.input_shape,
        n_classes=dataset.n_classes,
        seed=settings.seed,
        n_members=settings.n_members,
        data=settings.data,
        data_sha256=settings.data_sha256,
        n_epochs=settings.epochs,
        learning_rate=settings.lr,
        batch_size=settings.batch_size,
        precision=settings.precision,
        train_accuracy=train_accuracy,
        test_accuracy=test_accuracy,
    )
    save_checkpoint(out, model.state_dict(), checkpoint, force=True)
    return TrainResult(
        path=str(out),
        model=settings.model,
        data=settings.data,
        n_members=settings.n_members,
        n_epochs=settings.epochs,
        seed=settings.seed,
        learning_rate=settings.lr,
        batch_size=settings.batch_size,
        precision=settings.precision,
        train_accuracy=train_accuracy,
        test_accuracy=test_accuracy,
        generalization_gap=train_accuracy - test_accuracy,
        seconds=run.seconds + time.perf_counter() - began,
    )
