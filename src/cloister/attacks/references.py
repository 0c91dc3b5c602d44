"""Models of the attacker's own for a target: trained by its recipe on halves of a pool, so that each half is known.

They come in pairs, one trained on a random half of the pool and one on the rest: every sample has as many references
that saw it as such that did not. What each answers on pool and population is kept on disk; the models are not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cloister.attacks import signals
from cloister.attacks.arrays import Bools, Floats, labels_below, logits_of
from cloister.attacks.shadows import Shadow
from cloister.attacks.signals import Signal
from cloister.checkpoint import Checkpoint, read_tensors, write_tensors
from cloister.errors import DataError, InputError, TargetError, UserError
from cloister.exposure.control import drawn_anew
from cloister.exposure.measure import make_folder
from cloister.exposure.samples import hash_pair, image_hashes
from cloister.exposure.tuning import seed_of
from cloister.progress import Progress
from cloister.target import Pair, Target
from cloister.trainer import hash_weights, train_again

__all__ = ["Build", "Deploy", "References", "Release", "as_trained", "train_references"]

#: Makes a model with fresh weights of a seed: the references' architecture need not be the target's.
Build = Callable[[int], nn.Module]
#: Makes of a trained model what answers images (N, *input_shape) with logits (N, K): quantized as the victim, say.
Deploy = Callable[[nn.Module], Callable[[Tensor], Tensor]]
#: What of logits (N, K) is given out, as logits: softened, rounded, the largest only.
Release = Callable[[Floats], Floats]
Part = Literal["pool", "population"]

_BATCH = 256


def as_trained(model: nn.Module) -> nn.Module:
    """The deployment that changes nothing."""
    return model


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class References:
    """What reference models answer.

    Attributes:
        is_in: (M, N) bool: which was trained on which sample of the pool.
        labels: (N,) of the pool.
        population_labels: (Z,) of samples that none was trained on; None if there is no population.
        files: one for each reference.
        release: what of the logits is given out; None for all.
    """

    is_in: Bools
    labels: npt.NDArray[np.int64]
    population_labels: npt.NDArray[np.int64] | None
    files: tuple[Path, ...]
    release: Release | None

    def logits(self, at: int, part: Part = "pool", *, deployment: str = "as-trained", adaptive: bool = True) -> Floats:
        """What one reference answers.

        Args:
            at: which, in [0, M).
            part: of the pool, or of the population.
            deployment: one of those that were asked for.
            adaptive: as released by the victim's filter; without it for the attack that does not know of it.

        Returns:
            (N, K) or (Z, K).

        Raises:
            InputError: no such deployment or part, or a release that does not give finite logits of the same shape.
        """
        tensors, _ = read_tensors(self.files[at])
        found = tensors.get(f"{part}.{deployment}")
        if found is None:
            known = ", ".join(sorted(tensors))
            raise InputError(f"references: expected one of {known}, but got {part}.{deployment}")
        whole = logits_of(found.numpy(), f"logits of reference {at}")
        if self.release is None or not adaptive:
            return whole
        released = logits_of(self.release(whole), f"released logits of reference {at}", n=len(whole))
        if released.shape != whole.shape:
            raise InputError(f"release: expected logits of shape {whole.shape}, but got {released.shape}")
        return released

    def scores(
        self, signal: Signal, part: Part = "pool", *, deployment: str = "as-trained", adaptive: bool = True
    ) -> Floats:
        """A signal of all references, (M, N) or (M, Z), as a score; arguments as for `logits`."""
        labels = self.labels if part == "pool" else self.population_labels
        if labels is None:
            raise InputError("references: expected a population, but they were trained without", "give `population`")
        rows = [
            signals.score(signal, self.logits(at, part, deployment=deployment, adaptive=adaptive), labels)
            for at in range(len(self.files))
        ]
        return np.stack(rows)

    def shadow(self, at: int, *, deployment: str = "as-trained", adaptive: bool = True) -> Shadow:
        """One reference as a shadow; arguments as for `logits`."""
        logits = self.logits(at, deployment=deployment, adaptive=adaptive)
        return Shadow(logits=logits, labels=self.labels, is_member=self.is_in[at])


def train_references(
    target: Target,
    pool: Pair,
    *,
    n_models: int,
    folder: Path | str,
    population: Pair | None = None,
    release: Release | None = None,
    deployments: Mapping[str, Deploy] | None = None,
    build: Build | None = None,
    recipe: Checkpoint | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> References:
    """Train reference models and keep what they answer; what is there from before is not trained again.

    Processes that are given the same folder share the work: each trains what no other is at, and waits for the rest.

    Args:
        target: whom they stand for; it is not changed.
        pool: images and labels, half of which each is trained on, for example all of the target's.
        n_models: how many, even and at least 2.
        folder: where answers are kept, a file for each model under a hash of all that it depends on.
        population: images and labels that neither they nor the target were trained on; RMIA needs them.
        release: what the victim gives out of its logits; the references do the same. None if it gives them as they are.
        deployments: how trained models are made to answer, by name; `as-trained` if omitted. The name is part of what
            a file is kept under, so another deployment needs another name.
        build: makes a model with fresh weights; the target's, drawn anew, if omitted.
        recipe: epochs, learning rate, batch size and precision; the target's checkpoint if omitted.
        seed: of halves, weights and orders, in [0, 2**63).
        device: of PyTorch, to train and to answer on.
        progress: told after every step, with how many minutes are left.

    Returns:
        Their answers.

    Raises:
        DataError: a pool that does not fit the target, or a population that is in it.
        TargetError: nothing tells how to train, an exported program without `build`, or a file that cannot be written.
        UserError: settings out of range, a folder that cannot be made, or a loss that is not finite.
    """
    _check_settings(n_models, seed, deployments)
    how = _recipe(target, recipe)
    make = _build(target) if build is None else build
    _check_data(target, pool, population)
    work = _Work(
        pool=(pool[0], pool[1].astype(np.int64)),
        population=population,
        folder=make_folder(Path(folder)),
        deployments=deployments or {"as-trained": as_trained},
        recipe=how,
        device=torch.device(device),
    )
    is_in = _halves(len(pool[1]), n_models, seed)
    told = _Told(progress, n_models)
    files: dict[int, Path] = {}
    for wait in (False, True):
        for at in sorted(set(range(n_models)) - set(files)):
            own = seed_of([seed, at, 3])
            path = work.one(make(own), is_in[at], own, told, wait=wait)
            if path is not None:
                files[at] = path
                told.finished()
    return References(
        is_in=is_in,
        labels=work.pool[1],
        population_labels=None if population is None else population[1].astype(np.int64),
        files=tuple(files[at] for at in range(n_models)),
        release=release,
    )


def _check_settings(n_models: int, seed: int, deployments: Mapping[str, Deploy] | None) -> None:
    if n_models < 2 or n_models % 2:
        raise UserError(f"references: expected an even number of models, at least 2, but got {n_models}")
    if not 0 <= seed < 2**63:
        raise UserError(f"references: expected a seed in [0, 2**63), but got {seed}")
    if deployments is not None and not deployments:
        raise UserError("references: expected at least one deployment, but got none")


def _recipe(target: Target, recipe: Checkpoint | None) -> Checkpoint:
    found = target.checkpoint if recipe is None else recipe
    if found is None:
        raise TargetError(
            f"target `{target.name}`: expected a checkpoint that tells how it was trained, but there is none",
            "give `recipe`, or a target with a `checkpoint`",
        )
    return found


def _build(target: Target) -> Build:
    model = target.model
    if not isinstance(model, nn.Module):
        raise TargetError(
            f"target `{target.name}` is an exported program, which cannot be trained", "give `build`, or its nn.Module"
        )
    return lambda seed: drawn_anew(model, seed)


def _check_data(target: Target, pool: Pair, population: Pair | None) -> None:
    for name, pair in (("pool", pool), ("population", population)):
        if pair is None:
            continue
        images, labels = pair
        if images.dtype != np.float32 or images.shape[1:] != tuple(target.input_shape) or len(images) < 4:
            raise DataError(
                f"{name}: expected at least 4 images (N, {', '.join(map(str, target.input_shape))}) of float32, "
                f"but got {images.dtype} {images.shape}"
            )
        labels_below(labels, 2**63 - 1 if target.n_classes is None else target.n_classes, name, (len(images),))
    if population is not None:
        n_same = len(set(image_hashes(pool[0])) & set(image_hashes(population[0])))
        if n_same:
            raise DataError(
                f"population: expected images that no reference is trained on, but {n_same} are in the pool",
                "take images that are neither members nor non-members of the target",
            )


def _halves(n: int, n_models: int, seed: int) -> Bools:
    """(M, N): rows in pairs, each a random half and the rest."""
    is_in = np.zeros((n_models, n), dtype=np.bool_)
    for pair in range(n_models // 2):
        rng = np.random.default_rng(np.random.SeedSequence([seed, pair, 4]))
        is_in[2 * pair, rng.permutation(n)[: n // 2]] = True
        is_in[2 * pair + 1] = ~is_in[2 * pair]
    return is_in


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """What all references have in common."""

    pool: Pair
    population: Pair | None
    folder: Path
    deployments: Mapping[str, Deploy]
    recipe: Checkpoint
    device: torch.device

    def one(self, fresh: nn.Module, chosen: Bools, seed: int, told: _Told, *, wait: bool) -> Path | None:
        """Train a reference and write what it answers, or find that done; None if another process is at it."""
        recipe = msgspec.structs.replace(self.recipe, seed=seed)
        path = self.folder / f"reference-{self._digest(fresh, chosen, recipe)}.safetensors"
        if _is_whole(path):
            return path
        with _claimed(path, told if wait else None) as is_ours:
            if not is_ours:
                return None
            if not _is_whole(path):
                self._train(path, fresh, chosen, recipe, told)
        return path

    def _train(self, path: Path, fresh: nn.Module, chosen: Bools, recipe: Checkpoint, told: _Told) -> None:
        model = train_again(
            fresh,
            self.pool[0][chosen],
            self.pool[1][chosen],
            recipe,
            resume=path.with_name(f"{path.name}.resume"),
            device=self.device,
            progress=told,
        )
        write_tensors(path, self._answers(model), msgspec.json.encode(recipe).decode())

    def _answers(self, model: nn.Module) -> dict[str, Tensor]:
        parts = {"pool": self.pool[0], "population": None if self.population is None else self.population[0]}
        return {
            f"{part}.{name}": _answer(deploy(model), images, self.device)
            for name, deploy in self.deployments.items()
            for part, images in parts.items()
            if images is not None
        }

    def _digest(self, fresh: nn.Module, chosen: Bools, recipe: Checkpoint) -> str:
        digest = hashlib.sha256(msgspec.json.encode([recipe, sorted(self.deployments)]))
        digest.update(f"{fresh} {hash_weights(fresh)} {hash_pair(self.pool)}".encode())
        digest.update(hash_pair(self.population).encode() if self.population else b"none")
        digest.update(np.packbits(chosen).tobytes())
        return digest.hexdigest()[:32]


def _is_whole(path: Path) -> bool:
    """A file that is damaged is made anew."""
    if not path.exists():
        return False
    try:
        read_tensors(path)
    except TargetError:
        return False
    return True


@contextlib.contextmanager
def _claimed(path: Path, told: _Told | None) -> Iterator[bool]:
    """Hold a reference's lock, so that no other process trains it: wait for it with `told`, else say if it is ours."""
    lock = path.with_suffix(".lock")
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if told is None:
                yield False
                return
            told.waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield True
        # Whoever has waited finds the answers; after an interruption the lock file stays and is taken again.
        lock.unlink(missing_ok=True)


def _answer(answers: Callable[[Tensor], Tensor], images: npt.NDArray[np.float32], device: torch.device) -> Tensor:
    batches = torch.split(torch.from_numpy(images), _BATCH)
    with torch.inference_mode():
        return torch.cat([answers(batch.to(device)).float().cpu() for batch in batches])


class _Told:
    """Progress over all references, with the time that is left by what was trained in this call."""

    def __init__(self, progress: Progress | None, n_models: int) -> None:
        self._progress, self._n_models = progress, n_models
        self._at, self._n_trained_steps = 0, 0
        self._began = time.perf_counter()

    def update(self, done: int, total: int, text: str) -> None:
        """Take note of a step of the reference that is trained."""
        self._n_trained_steps += 1
        if self._progress is None:
            return
        each = (time.perf_counter() - self._began) / self._n_trained_steps
        left = each * (total * (self._n_models - self._at) - done)
        whole = f"reference {self._at + 1} of {self._n_models}, {text}, about {_in_words(left)} left"
        self._progress.update(self._at * total + done, self._n_models * total, whole)

    def waiting(self) -> None:
        """Say that another process trains what is left."""
        if self._progress is not None:
            text = f"reference {self._at + 1} of {self._n_models} is trained by another process"
            self._progress.update(self._at, self._n_models, text)

    def finished(self) -> None:
        """Go on to the next reference."""
        self._at += 1
        if self._progress is not None and self._n_trained_steps == 0:
            self._began = time.perf_counter()
            self._progress.update(self._at, self._n_models, f"reference {self._at} of {self._n_models} is there")


def _in_words(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
