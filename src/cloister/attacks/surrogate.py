"""A surrogate for the inside: trained by queries until it answers as the model does, behind or between what is visible.

It gives an attacker who only watches inference gradients of all layers, if not the true ones. How long it is trained
decides what the attack finds: a short fit looks like protection. So it is trained until it gains nothing more, and says
whether it got there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from cloister.attacks.observations import Hidden, Observations
from cloister.attacks.view import Inside, View
from cloister.bundle.manifest import Step, TensorInfo
from cloister.checkpoint import read_tensors, write_tensors
from cloister.errors import DataError, TargetError, UserError
from cloister.progress import Progress
from cloister.protection import Lowered, place

__all__ = ["Fidelity", "Surrogate", "fit_surrogate"]

_BATCH = 64
#: The rate falls by this much where an epoch's loss has not fallen by 1 % for some epochs, so many times.
_FALL, _PATIENCE, _FALLS = 0.3, 3, 3
#: A divergence per query, in nats, that leaves nothing to learn.
_EXACT = 1e-3
_VERSION = 1


class Fidelity(msgspec.Struct, frozen=True, kw_only=True):
    """How well a surrogate answers as the model does.

    Attributes:
        queries: images that it was trained on.
        epochs: passes over them.
        converged: whether it stopped because it gained nothing more, and not because epochs ran out.
        divergence: mean over the queries, in nats: Kullback-Leibler from released scores, or loss on released labels.
        agreement: share of the queries with the same top class, in [0, 1].
        agreement_held_out: the same of queries that it was not trained on.
    """

    queries: int
    epochs: int
    converged: bool
    divergence: float
    agreement: float
    agreement_held_out: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surrogate:
    """What an attacker puts in the place of the inside.

    Attributes:
        hidden: the stages of the attacker's own model that are inside in the attacked one.
        parameters: trained, by name, float32.
        fidelity: how good it is.
    """

    hidden: Hidden
    parameters: dict[str, Tensor]
    fidelity: Fidelity

    def inside(self, parameters: dict[str, Tensor], activations: dict[str, Tensor]) -> Inside:
        """It as `View.run` wants it."""
        return _inside(self.hidden, parameters, activations)


def fit_surrogate(
    view: View,
    own: Lowered,
    queries: Observations,
    *,
    seed: int = 0,
    lr: float = 1e-3,
    max_epochs: int = 300,
    state: Path | None = None,
    progress: Progress | None = None,
) -> Surrogate:
    """Train a surrogate for the inside on answers to an attacker's own images.

    The visible stages stay as they are, quantized where they are; the surrogate is in the precision of `own`.

    Args:
        view: what is visible.
        own: a model of the same architecture with weights that the attacker has: public ones, or fresh.
        queries: with the released scores or labels, at least 10. One in ten is held out, to see how well it answers.
        seed: of the order of queries.
        lr: of Adam; it falls where nothing is gained any more.
        max_epochs: the most passes.
        state: folder where a finished surrogate is kept.
        progress: told after each epoch.

    Raises:
        TargetError: the attacker's model has no such layers, or of other shapes.
        DataError: nothing was released, or there are too few queries.
        UserError: nothing is inside, or the loss is not finite.
    """
    hidden = _hidden_of(view, own)
    if queries.released is None or len(queries) < 10:
        came = "nothing is released" if queries.released is None else f"got {len(queries)}"
        raise DataError(f"surrogate: expected at least 10 queries with their answers, but {came}")
    path = (
        None
        if state is None
        else state / f"surrogate-{_digest(view, hidden, queries, seed, lr, max_epochs)}.safetensors"
    )
    kept = _read(path, hidden)
    if kept is not None:
        return kept
    fit = _Fit(view, hidden, queries, seed, lr)
    fidelity = fit.run(max_epochs, progress)
    trained = {name: one.detach() for name, one in fit.parameters.items()}
    if path is not None:
        write_tensors(path, trained, msgspec.json.encode(fidelity).decode())
    return Surrogate(hidden=hidden, parameters=trained, fidelity=fidelity)


def _hidden_of(view: View, own: Lowered) -> Hidden:
    if not view.layers_inside:
        raise UserError("surrogate: nothing is inside, so nothing needs one", "attack the model as it is")
    hidden = Hidden(place(own, ",".join(view.layers_inside)))
    wanted = [_shapes(step, view.tensors) for step in view.steps if step.world == "inside"]
    got = [_shapes(step, hidden.tensors) for step in hidden.steps]
    if wanted != got:
        raise TargetError(
            f"surrogate: expected stages of shapes {wanted}, but those of `{own.name}` are {got}",
            "take a model of the same architecture",
        )
    return hidden


def _shapes(step: Step, tensors: dict[str, TensorInfo]) -> tuple[list[tuple[int, ...]], ...]:
    return [tensors[name].shape for name in step.inputs], [tensors[name].shape for name in step.outputs]


def _inside(hidden: Hidden, parameters: dict[str, Tensor], activations: dict[str, Tensor]) -> Inside:
    return lambda step, inputs: hidden.run(step.index, inputs, parameters, activations)


class _Fit:
    """A surrogate in training."""

    def __init__(self, view: View, hidden: Hidden, queries: Observations, seed: int, lr: float) -> None:
        assert queries.released is not None
        self._view, self._hidden, self._seed = view, hidden, seed
        self.parameters = {name: one.clone().requires_grad_() for name, one in hidden.parameters.items()}
        self._images, self._answers = queries.images, queries.released
        self._begun = self._before_the_inside()
        order = np.random.default_rng([seed, 0]).permutation(len(queries))
        n_held_out = len(order) // 10
        self._held_out, self._seen = order[:n_held_out], order[n_held_out:]
        self._optimizer = torch.optim.Adam(self.parameters.values(), lr=lr)
        self._schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self._optimizer, factor=_FALL, patience=_PATIENCE, threshold=0.01
        )
        self._least_lr = lr * _FALL ** (_FALLS - 0.5)

    def run(self, max_epochs: int, progress: Progress | None) -> Fidelity:
        """Train until nothing is gained."""
        epoch, converged = 0, False
        while epoch < max_epochs and not converged:
            epoch += 1
            loss = self._epoch(epoch)
            if not math.isfinite(loss):
                raise UserError(f"surrogate: the loss is not finite after epoch {epoch}", "lower the learning rate")
            self._schedule.step(loss)
            converged = loss < _EXACT or self._optimizer.param_groups[0]["lr"] < self._least_lr
            if progress is not None:
                progress.update(epoch, max_epochs, f"surrogate, divergence {loss:.4f}")
        divergence, agreement = self._judge(self._seen)
        return Fidelity(
            queries=len(self._seen),
            epochs=epoch,
            converged=converged,
            divergence=divergence,
            agreement=agreement,
            agreement_held_out=self._judge(self._held_out)[1],
        )

    def _before_the_inside(self) -> dict[str, Tensor]:
        """What does not depend on the inside, of all queries: it is computed once."""
        wanted = {name: [] for step in self._first_steps() for name in step.outputs}  # type: dict[str, list[Tensor]]
        with torch.no_grad():
            for part in torch.split(self._images, _BATCH):
                values = self._view.run(part, self._nothing).values if wanted else {}
                for name, found in wanted.items():
                    found.append(values[name])
        return {name: torch.cat(found) for name, found in wanted.items()}

    def _first_steps(self) -> list[Step]:
        steps = self._view.steps
        return list(steps[: next(i for i, step in enumerate(steps) if step.world == "inside")])

    def _nothing(self, step: Step, inputs: list[Tensor]) -> list[Tensor]:
        return [inputs[0].new_zeros(len(inputs[0]), *self._view.tensors[name].shape) for name in step.outputs]

    def _scores(self, at: Tensor) -> Tensor:
        inside = _inside(self._hidden, self.parameters, {})
        begun = {name: value[at] for name, value in self._begun.items()}
        return self._view.run(self._images[at], inside, begun=begun).values[self._view.output]

    def _losses(self, scores: Tensor, at: Tensor) -> Tensor:
        answers = self._answers[at]
        if answers.dim() == 1:
            return functional.cross_entropy(scores, answers, reduction="none")
        wanted = answers.log_softmax(1)
        return functional.kl_div(scores.log_softmax(1), wanted, reduction="none", log_target=True).sum(1)

    def _epoch(self, epoch: int) -> float:
        order = np.random.default_rng([self._seed, epoch]).permutation(self._seen)
        total = 0.0
        for batch in torch.split(torch.from_numpy(order), _BATCH):
            losses = self._losses(self._scores(batch), batch)
            self._optimizer.zero_grad()
            losses.mean().backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            total += float(losses.detach().sum())
        return total / len(order)

    def _judge(self, indices: npt.NDArray[np.int64]) -> tuple[float, float]:
        """Mean divergence, and share of the same top class."""
        with torch.no_grad():
            parts = torch.split(torch.from_numpy(indices), _BATCH)
            scores = [self._scores(part) for part in parts]
            losses = torch.cat([self._losses(one, part) for one, part in zip(scores, parts, strict=True)])
        answers = self._answers[torch.from_numpy(indices)]
        top = answers if answers.dim() == 1 else answers.argmax(1)
        return float(losses.mean()), float((torch.cat(scores).argmax(1) == top).float().mean())


# --- what is kept ---


def _digest(view: View, hidden: Hidden, queries: Observations, *settings: float) -> str:
    digest = hashlib.sha256(msgspec.json.encode([_VERSION, str(torch.__version__), view.sha256, settings]))
    assert queries.released is not None
    named = {**hidden.parameters, "images": queries.images, "released": queries.released}
    for name, tensor in named.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _read(path: Path | None, hidden: Hidden) -> Surrogate | None:
    """A finished surrogate; what cannot be read is trained again."""
    if path is None or not path.exists():
        return None
    try:
        tensors, document = read_tensors(path)
        fidelity = msgspec.json.decode(document or "", type=Fidelity)
    except (TargetError, msgspec.DecodeError):
        return None
    return Surrogate(hidden=hidden, parameters=tensors, fidelity=fidelity)
