"""What somebody outside observes of single images, and the simulated device that shows it.

The device is the whole model, in both worlds; only who simulates holds it. An attack gets a view and observations.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from cloister.attacks.twin import ProgramTwin
from cloister.attacks.view import Inside, view_of_placed
from cloister.bundle.manifest import Step
from cloister.compile.program import build_outside, constants
from cloister.errors import DataError
from cloister.protection import Lowered, Placed, place
from cloister.target import Pair

__all__ = ["Device", "Hidden", "Observations", "Release"]

#: What is released of an output: its scores, the class with the largest, or nothing.
Release = Literal["scores", "labels", "nothing"]
_BATCH = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observations:
    """What was seen of N images.

    Attributes:
        images: (N, *input shape) float32.
        labels: (N,) int64: the true ones, which an attacker is taken to know.
        released: scores (N, K) float32, or labels (N,) int64; None if nothing is released.
        values: what went in and came out, by name, (N, *shape); of int8 as real numbers. Empty if it was not looked at.
        gradients: of each image's own loss, with respect to what went in, as the inside gives them back so that the
            outside can be trained; none where no parameter outside needs them. None if no training was watched.
    """

    images: Tensor
    labels: Tensor
    released: Tensor | None
    values: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    gradients: dict[str, Tensor] | None = None

    def take(self, chosen: npt.NDArray[np.int64] | slice) -> Self:
        """Those of some images."""
        at = chosen if isinstance(chosen, slice) else torch.from_numpy(chosen)
        return dataclasses.replace(
            self,
            images=self.images[at],
            labels=self.labels[at],
            released=None if self.released is None else self.released[at],
            values={name: value[at] for name, value in self.values.items()},
            gradients=None if self.gradients is None else {name: one[at] for name, one in self.gradients.items()},
        )

    def __len__(self) -> int:
        return len(self.labels)


class Hidden:
    """The inside of a model with layers placed: its own for a device, an attacker's own model's for a surrogate.

    Args:
        placed: the model.

    Attributes:
        steps: the inside steps.
        parameters: by name, float32.
    """

    def __init__(self, placed: Placed) -> None:
        self.steps = tuple(step for step in placed.steps if step.world == "inside")
        self.tensors = {info.name: info for info in placed.tensors}
        stages = placed.stages_in("inside")
        self._twin = None
        if stages:
            program = build_outside(placed.lowered.graph, stages)
            self._twin = ProgramTwin(program.data, constants(program), self.steps, self.tensors)
        self.parameters = self._twin.parameters if self._twin else {}

    def run(
        self, index: int, inputs: list[Tensor], parameters: dict[str, Tensor], activations: dict[str, Tensor]
    ) -> list[Tensor]:
        """Run an inside step (`ProgramTwin.run`)."""
        assert self._twin is not None
        return self._twin.run(index, inputs, parameters, activations)


class Device:
    """A protected model, simulated in both worlds.

    Args:
        lowered: the target.
        inside: see `view_of_plan`.

    Attributes:
        view: what is outside of it.

    Raises:
        PlanError, UnsupportedModel: see `view_of_plan`.
    """

    def __init__(self, lowered: Lowered, inside: str) -> None:
        placed = place(lowered, inside)
        self.view = view_of_placed(placed)
        self._hidden = Hidden(placed)

    def observe(self, pair: Pair, *, release: Release = "scores", training: bool = False) -> Observations:
        """Show what an attacker sees of some images.

        Args:
            pair: images (N, *input shape) float32, and their labels (N,).
            release: of the outputs; where the output is computed outside its scores are seen in any case.
            training: whether the images are trained on while the attacker watches, one by one: then the inside gives
                gradients of the cross entropy back. Batch norms are in evaluation mode.

        Raises:
            DataError: no images, images of another shape or dtype, or labels that are no classes of the model.
        """
        self._check(pair)
        images, labels = torch.from_numpy(pair[0]), torch.from_numpy(np.asarray(pair[1], np.int64))
        release = "scores" if self.view.output_is_outside else release
        parts = [
            self._observe(images[start : start + _BATCH], labels[start : start + _BATCH], release, training)
            for start in range(0, len(labels), _BATCH)
        ]
        return _joined(parts)

    def _check(self, pair: Pair) -> None:
        images, labels = pair
        shape, n_classes = self.view.tensors[self.view.input].shape, self.view.tensors[self.view.output].shape[-1]
        if images.dtype != np.float32 or images.shape[1:] != shape or len(images) != len(labels) or not len(images):
            raise DataError(
                f"expected images float32 (N, {', '.join(map(str, shape))}) with N labels, N at least 1, "
                f"but got {images.dtype} {images.shape} with {len(labels)}"
            )
        low, high = int(labels.min()), int(labels.max())
        if not 0 <= low <= high < n_classes:
            raise DataError(
                f"expected labels in [0, {n_classes - 1}], the model's classes, but they lie in [{low}, {high}]"
            )

    def _observe(self, images: Tensor, labels: Tensor, release: Release, training: bool) -> Observations:
        entries: dict[str, list[Tensor]] = {}
        parameters = {name: one.clone().requires_grad_(training) for name, one in self.view.parameters.items()}
        with torch.set_grad_enabled(training):
            run = self.view.run(images, self._inside(entries), parameters)
            scores = run.values[self.view.output]
            if scores.requires_grad:
                functional.cross_entropy(scores, labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
        gradients = {
            name: torch.stack([one.grad for one in entered if one.grad is not None]).sum(0)
            for name, entered in entries.items()
            if any(one.grad is not None for one in entered)
        }
        return Observations(
            images=images,
            labels=labels,
            released=_released(scores.detach(), release),
            values={name: run.values[name].detach() for name in self.view.crossing},
            gradients=gradients if training else None,
        )

    def _inside(self, entries: dict[str, list[Tensor]]) -> Inside:
        """The inside as it runs; the gradient of an entry is what came back through this step alone."""

        def inside(step: Step, inputs: list[Tensor]) -> list[Tensor]:
            entered = [value.clone() for value in inputs]
            for name, value in zip(step.inputs, entered, strict=True):
                if value.requires_grad:
                    value.retain_grad()
                    entries.setdefault(name, []).append(value)
            return self._hidden.run(step.index, entered, self._hidden.parameters, {})

        return inside


def _released(scores: Tensor, release: Release) -> Tensor | None:
    if release == "nothing":
        return None
    return scores if release == "scores" else scores.argmax(1)


def _joined(parts: list[Observations]) -> Observations:
    """All of them, one after the other; every part has the same things."""
    first = parts[0]
    return Observations(
        images=torch.cat([part.images for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        released=None if first.released is None else torch.cat([part.released for part in parts]),  # type: ignore[misc]
        values={name: torch.cat([part.values[name] for part in parts]) for name in first.values},
        gradients=None
        if first.gradients is None
        else {name: torch.cat([(part.gradients or {})[name] for part in parts]) for name in first.gradients},
    )
