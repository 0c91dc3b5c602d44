"""The control base: the same model, trained by the same recipe on images that are in neither S nor T."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from cloister.checkpoint import Checkpoint, load_weights, read_tensors, write_tensors
from cloister.errors import DataError, TargetError
from cloister.exposure.samples import Sets, hash_pair, image_hashes
from cloister.exposure.tuning import draw_anew, seed_of
from cloister.progress import Named, Progress
from cloister.target import Pair, Target
from cloister.trainer import train_again

__all__ = ["ControlBase", "control_base", "drawn_anew"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlBase:
    """A control base, or why there is none.

    Attributes:
        target: the base; None if there is none.
        n_trained_on: images in U, if it was trained here.
        warnings: why there is none, or what is not known of it.
    """

    target: Target | None = None
    n_trained_on: int | None = None
    warnings: tuple[str, ...] = ()


def control_base(
    target: Target, control: Target | Pair | None, sets: Sets, *, folder: Path, progress: Progress | None
) -> ControlBase:
    """Take the control base that is given, or train one.

    Args:
        target: the model that is measured.
        control: a base; or U, images and labels to train one on; or None for non-members that are not in T.
        sets: S and T.
        folder: where a trained one is kept.
        progress: told after every step of training.

    Raises:
        DataError: images of S or T are among what it was trained on.
        TargetError: a base of another input shape.
    """
    if isinstance(control, Target):
        return _given(target, control, sets)
    unseen = _unseen(control, sets)
    reason = _why_not(target, unseen, sets)
    if reason is not None:
        return ControlBase(warnings=(f"control `unseen-base` is left out: {reason}",))
    assert unseen is not None
    model = _trained(target, unseen, folder, progress)
    made = dataclasses.replace(target, model=model, name=f"{target.name}, control", members=unseen, nonmembers=None)
    n, n_members = len(unseen[1]), len(sets.members[1])
    warnings = (f"the control base was trained on {n:,} images, the target on {n_members:,}",) if n != n_members else ()
    return ControlBase(target=made, n_trained_on=n, warnings=warnings)


def _given(target: Target, control: Target, sets: Sets) -> ControlBase:
    if tuple(control.input_shape) != tuple(target.input_shape):
        raise TargetError(
            f"control base: expected input shape {tuple(target.input_shape)}, but got {tuple(control.input_shape)}"
        )
    if control.members is None:
        return ControlBase(target=control, warnings=("nothing tells what the control base was trained on",))
    _check_unseen(control.members, sets)
    return ControlBase(target=control)


def _check_unseen(pair: Pair, sets: Sets) -> None:
    n_same = sum(one in sets.hashes for one in image_hashes(pair[0]))
    if n_same:
        raise DataError(
            f"control base: expected images that are in neither S nor T, but {n_same} of {len(pair[1])} are",
            "take images that are neither members nor non-members of the target",
        )


def _unseen(control: Pair | None, sets: Sets) -> Pair | None:
    """U: what is given, or as many spare non-members as there are members, or None if there are not so many."""
    if control is not None:
        _check_unseen(control, sets)
        return control[0], control[1].astype(np.int64)
    n = len(sets.members[1])
    if len(sets.spare) < n:
        return None
    chosen = np.sort(sets.spare[:n])
    return sets.nonmembers[0][chosen], sets.nonmembers[1][chosen].astype(np.int64)


def _why_not(target: Target, unseen: Pair | None, sets: Sets) -> str | None:
    if unseen is None:
        return (
            f"expected {len(sets.members[1]):,} more non-members to train it on, as many as there are members, "
            f"but {len(sets.spare):,} are left; train the target on a third of its data, or give `control`"
        )
    if not isinstance(target.model, nn.Module):
        return "an exported program cannot be trained; give `control`"
    if target.checkpoint is None:
        return "nothing tells how the target was trained; give `control`, or a target with a `checkpoint`"
    return None


def _trained(target: Target, unseen: Pair, folder: Path, progress: Progress | None) -> nn.Module:
    """Train it, or read it where that was done before."""
    model, recipe = target.model, target.checkpoint
    assert isinstance(model, nn.Module)
    assert recipe is not None
    fresh = drawn_anew(model, recipe.seed)
    path = folder / f"control-{_digest(fresh, recipe, unseen)}.safetensors"
    if path.exists():
        tensors, _ = read_tensors(path)
        load_weights(fresh, tensors, f"control base `{path}`")
        return fresh.eval()
    images, labels = unseen
    trained = train_again(
        fresh,
        images,
        labels,
        recipe,
        resume=path.with_name(f"{path.name}.resume"),
        progress=Named(progress, "control base"),
    )
    write_tensors(path, trained.state_dict(), msgspec.json.encode(recipe).decode())
    return trained


def _digest(fresh: nn.Module, recipe: Checkpoint, unseen: Pair) -> str:
    digest = hashlib.sha256(msgspec.json.encode(recipe))
    digest.update(f"{fresh} {hash_pair(unseen)}".encode())
    for name, tensor in fresh.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.double().sum().item()!r};".encode())
    return digest.hexdigest()[:32]


def drawn_anew(model: nn.Module, seed: int) -> nn.Module:
    """A copy with every parameter drawn anew, and batch norms without statistics."""
    fresh = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed_of([seed, 1]))
    for name, parameter in fresh.named_parameters():
        draw_anew(name, parameter, generator)
    for module in fresh.modules():
        if isinstance(module, _NormBase):
            module.reset_running_stats()
    return fresh
