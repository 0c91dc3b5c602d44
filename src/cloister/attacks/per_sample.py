"""What an attack model is fed for each image: gradients, activations, loss, label and output, of what is visible.

After Nasr, Shokri and Houmansadr (IEEE S&P 2019, section IV). A gradient is that of an image's own loss. Where it must
come through the inside, it does so only as observed: the visible stages are differentiated from the gradient that came
back. Or it comes through a surrogate. Batch norms are in evaluation mode (folded), arithmetic is float32.

The gradients of a model are as large as it is: of 1,000 images 1.1 GB for ResNet-20, 10 GB for AlexNet, 60 GB for
VGG-16. So by default each tensor's gradient is summed up in 12 numbers, a chunk of images at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from cloister.attacks.observations import Observations
from cloister.attacks.surrogate import Surrogate
from cloister.attacks.view import Inside, View
from cloister.bundle.manifest import Step
from cloister.errors import InputError
from cloister.progress import Progress

__all__ = ["Features", "Gradients", "known_gradients", "per_sample", "per_sample_gradients", "summarize_gradient"]

#: `summary`: 12 numbers for each tensor; `full`: every element besides.
Gradients = Literal["summary", "full"]
_CHUNK = 16
_TINY = 1e-30
_SHARES = 6
_TOP_SCORES = 10
_SURROGATE = "surrogate."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """Of N images, by component: `gradient`, `activation`, `loss`, `label`, `output`; what is not known is not there.

    Attributes:
        components: (N, d) float32 each.
        sees: names of the tensors whose gradients are in it, and of the layers whose activations are.
    """

    components: dict[str, Tensor]
    sees: dict[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.components["label"])

    def take(self, chosen: npt.NDArray[np.int64]) -> Self:
        """Those of some images."""
        at = torch.from_numpy(chosen)
        return dataclasses.replace(self, components={name: one[at] for name, one in self.components.items()})


def per_sample(
    view: View,
    seen: Observations,
    *,
    surrogate: Surrogate | None = None,
    gradients: Gradients = "summary",
    chunk: int = _CHUNK,
    progress: Progress | None = None,
) -> Features:
    """The features of what was seen.

    Args:
        view: what is visible.
        seen: N images.
        surrogate: in the place of the inside; what was observed of gradients is not used then.
        gradients: how they are told.
        chunk: images at a time: memory for so many gradients of the visible model.
        progress: told after each chunk.

    Raises:
        InputError: nobody looked at what came out of the inside, but there are layers behind it, and no surrogate.
    """
    if surrogate is None:
        _check_came_out(view, seen)
    known = known_gradients(view, seen, surrogate)
    rows: dict[str, list[Tensor]] = {}
    names: dict[str, tuple[str, ...]] = {}
    for start, part in _chunks(seen, chunk):
        for component, found in _rows(view, part, surrogate, known, gradients).items():
            names[component] = tuple(found)
            rows.setdefault(component, []).append(torch.cat(list(found.values()), 1))
        if progress is not None:
            progress.update(start + len(part), len(seen), "per-sample features")
    return Features(components={name: torch.cat(parts) for name, parts in rows.items()}, sees=names)


def _check_came_out(view: View, seen: Observations) -> None:
    made_inside = {name for step in view.steps if step.world == "inside" for name in step.outputs}
    read = {name for step in view.steps if step.world != "inside" for name in step.inputs}
    missing = sorted(made_inside & read - set(seen.values))
    if missing:
        raise InputError(
            f"expected what came out of the inside, {', '.join(f'`{name}`' for name in missing)}, since layers outside "
            "read it, but it was not observed",
            "observe it, or let a surrogate stand for the inside",
        )


def _chunks(seen: Observations, size: int) -> Iterator[tuple[int, Observations]]:
    for start in range(0, len(seen), size):
        yield start, seen.take(slice(start, start + size))


def _rows(
    view: View, part: Observations, surrogate: Surrogate | None, known: tuple[str, ...], kind: Gradients
) -> dict[str, dict[str, Tensor]]:
    """The features of a chunk: by component, then by name, (n, d)."""
    found: dict[str, dict[str, Tensor]] = {}
    of_model, run = per_sample_gradients(view, part, known, surrogate)
    weights = _parameters(view, surrogate)
    if known:
        found["gradient"] = {name: _gradient(one, weights[name], kind) for name, one in of_model.items()}
    if run.activations:
        found["activation"] = {name: _moments(value) for name, value in run.activations.items()}
    n_classes = view.tensors[view.output].shape[-1]
    found["label"] = {"true": functional.one_hot(part.labels, n_classes).float()}
    told = {"released": part.released, "surrogate": run.scores if surrogate else None}
    scores = {name: one for name, one in told.items() if one is not None}
    if scores:
        found["loss"] = {name: _loss(one, part.labels) for name, one in scores.items()}
        found["output"] = {name: _output(one, n_classes) for name, one in scores.items()}
    return found


# --- gradients ---


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Seen:
    """What running a chunk gave besides gradients."""

    activations: dict[str, Tensor]
    scores: Tensor | None


def per_sample_gradients(
    view: View, seen: Observations, names: Iterable[str], surrogate: Surrogate | None = None
) -> tuple[dict[str, Tensor], _Seen]:
    """Gradients of each image's own cross entropy, all at once.

    Args:
        view: what is visible.
        seen: N images, as many as memory is there for.
        names: of parameters, those of the surrogate with `surrogate.` before them.
        surrogate: in the place of the inside.

    Returns:
        (N, *shape) for each name; and the activations and scores of the run, (N, ...).
    """
    parameters = _parameters(view, surrogate)
    wanted = {name: parameters[name] for name in names}
    function = _loss_of_one(view, {name: one for name, one in parameters.items() if name not in wanted}, surrogate)
    given = (seen.images, seen.labels, seen.values, seen.gradients or {})
    if wanted:
        both = torch.func.vmap(torch.func.grad(function, has_aux=True), in_dims=(None, 0, 0, 0, 0))
        gradients, (activations, scores) = both(wanted, *given)
    else:
        with torch.no_grad():
            _, (activations, scores) = torch.func.vmap(function, in_dims=(None, 0, 0, 0, 0))(wanted, *given)
        gradients = {}
    # What comes out of the inside is an activation that was seen, not one that was computed.
    outputs = {name for step in view.steps if step.world == "inside" for name in step.outputs} - {view.output}
    crossed = {} if surrogate else {name: value for name, value in seen.values.items() if name in outputs}
    return gradients, _Seen(activations={**activations, **crossed}, scores=scores.get("scores"))


def known_gradients(view: View, seen: Observations, surrogate: Surrogate | None = None) -> tuple[str, ...]:
    """Names of the parameters whose gradients can be known.

    All visible ones where training is watched, or a surrogate stands for the inside. Otherwise only those that
    nothing inside depends on: without an inside all of them, with the last layers inside none.
    """
    if surrogate is not None or seen.gradients is not None:
        return tuple(_parameters(view, surrogate))
    parameters = {name: one.clone().requires_grad_() for name, one in view.parameters.items()}
    entered: list[Tensor] = []

    def inside(step: Step, inputs: list[Tensor]) -> list[Tensor]:
        entered.extend(one for one in inputs if one.requires_grad)
        return [inputs[0].new_zeros(len(inputs[0]), *view.tensors[name].shape) for name in step.outputs]

    view.run(seen.images[:1], inside, parameters)
    if not entered:
        return tuple(parameters)
    total = torch.stack([one.sum() for one in entered]).sum()
    reached = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return tuple(name for name, gradient in zip(parameters, reached, strict=True) if gradient is None)


def _parameters(view: View, surrogate: Surrogate | None) -> dict[str, Tensor]:
    own = surrogate.parameters if surrogate else {}
    return {**view.parameters, **{_SURROGATE + name: one for name, one in own.items()}}


_One = Callable[..., tuple[Tensor, tuple[dict[str, Tensor], dict[str, Tensor]]]]


def _loss_of_one(view: View, fixed: dict[str, Tensor], surrogate: Surrogate | None) -> _One:
    """A function of one image whose gradient is that of its loss.

    What came back through the inside is a constant g for what went in, v: the derivative of the inner product of g and
    v by a visible parameter is what the inside adds to its gradient. What came out is constant: its part is in g.
    """

    def function(
        wanted: dict[str, Tensor],
        image: Tensor,
        label: Tensor,
        values: dict[str, Tensor],
        gradients: dict[str, Tensor],
    ) -> tuple[Tensor, tuple[dict[str, Tensor], dict[str, Tensor]]]:
        parameters = {**fixed, **wanted}
        activations: dict[str, Tensor] = {}
        back: dict[str, Tensor] = {}

        def observed(step: Step, inputs: list[Tensor]) -> list[Tensor]:
            for name, value in zip(step.inputs, inputs, strict=True):
                if name in gradients:
                    back[name] = (value[0] * gradients[name]).sum()
            return [_came_out(view, name, values, inputs[0]) for name in step.outputs]

        inside: Inside = observed
        if surrogate is not None:
            own = {
                name.removeprefix(_SURROGATE): one for name, one in parameters.items() if name.startswith(_SURROGATE)
            }
            inside = surrogate.inside(own, activations)
        run = view.run(image[None], inside, parameters)
        total = image.new_zeros(()) + sum(back.values())
        scores = {}
        if surrogate is not None or view.output_is_outside:
            scores["scores"] = run.values[view.output][0]
            total = total + functional.cross_entropy(run.values[view.output], label[None])
        shown = {_SURROGATE + name: one for name, one in activations.items()} | run.activations
        return total, ({name: one[0] for name, one in shown.items()}, scores)

    return function


def _came_out(view: View, name: str, values: dict[str, Tensor], like: Tensor) -> Tensor:
    """What the inside gave; zeros where nobody looked, since then nothing outside reads it."""
    return values[name][None] if name in values else like.new_zeros(1, *view.tensors[name].shape)


# --- from tensors to rows ---


def _gradient(gradient: Tensor, weight: Tensor, kind: Gradients) -> Tensor:
    summary = summarize_gradient(gradient, weight)
    return torch.cat([summary, gradient.flatten(1)], 1) if kind == "full" else summary


def summarize_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """A tensor's gradients in few numbers.

    Args:
        gradient: (N, O, ...).
        weight: (O, ...), the parameter.

    Returns:
        (N, 12): logarithms of norm and largest element, inner product with the parameter and its cosine, the largest
        six shares of output units in the square of the norm, and the entropies of these and of the inputs' shares.
    """
    matrix = gradient.reshape(len(gradient), len(weight), -1)  # (N, O, I)
    squares = matrix * matrix
    by_unit, by_input = squares.sum(2), squares.sum(1)
    greatest = squares.flatten(1).amax(1, keepdim=True).sqrt()
    total = by_unit.sum(1, keepdim=True)
    norm = total.sqrt()
    inner = matrix.flatten(1) @ weight.flatten()[:, None]
    shares = by_unit / (total + _TINY)
    largest = shares.topk(min(_SHARES, shares.shape[1]), 1).values
    return torch.cat(
        [
            (norm + _TINY).log(),
            (greatest + _TINY).log(),
            inner,
            inner / (norm * weight.norm() + _TINY),
            functional.pad(largest, (0, _SHARES - largest.shape[1])),
            _entropy(shares),
            _entropy(by_input / (total + _TINY)),
        ],
        1,
    )


def _entropy(shares: Tensor) -> Tensor:
    return -(shares * (shares + _TINY).log()).sum(1, keepdim=True)


def _moments(values: Tensor) -> Tensor:
    """(N, ...) as (N, 7): mean, deviation, skewness, kurtosis, largest, log of the root mean square, mean sign."""
    flat = values.flatten(1)
    mean = flat.mean(1, keepdim=True)
    centred = flat - mean
    squares = centred * centred
    deviation = squares.mean(1, keepdim=True).sqrt()
    third, fourth = ((squares * other).mean(1, keepdim=True) for other in (centred, squares))
    columns = [
        *(mean, deviation, third / (deviation**3 + _TINY), fourth / (deviation**4 + _TINY)),
        *(flat.amax(1, keepdim=True), ((mean.square() + deviation.square()).sqrt() + _TINY).log()),
        flat.sign().mean(1, keepdim=True),
    ]
    return torch.cat(columns, 1)


def _loss(told: Tensor, labels: Tensor) -> Tensor:
    """Of scores: cross entropy, how far the true one is above the others, whether it is right; of labels the last."""
    if told.dim() == 1:
        return (told == labels).float()[:, None]
    true = told.gather(1, labels[:, None])
    others = told.scatter(1, labels[:, None], -torch.inf).logsumexp(1, keepdim=True)
    right = (told.argmax(1) == labels).float()[:, None]
    return torch.cat([functional.softplus(others - true), true - others, right], 1)


def _output(told: Tensor, n_classes: int) -> Tensor:
    """Of scores: the largest logarithms of probabilities, and their entropy; a label as its unit vector."""
    if told.dim() == 1:
        return functional.one_hot(told, n_classes).float()
    logs = told.log_softmax(1)
    entropy = -(logs.exp() * logs).sum(1, keepdim=True)
    return torch.cat([logs.topk(min(_TOP_SCORES, n_classes), 1).values, entropy], 1)
