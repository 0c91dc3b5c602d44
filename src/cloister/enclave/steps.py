"""What a session does for a number of images, made ready once: where each value lies, and what is called."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from cloister.bundle.manifest import Manifest, Step
from cloister.compile.ir import Tensor
from cloister.errors import BundleError

if TYPE_CHECKING:
    from cloister.enclave.torch_stage import TorchStage

__all__ = ["Call", "Place", "Prepare", "Steps", "memory_bytes"]

_ALIGNMENT = 64

Call = Callable[[], None]


class Place(NamedTuple):
    """Memory of one value for each image.

    Attributes:
        offset: where it starts in the memory of the steps.
        rows: (N, n_bytes) uint8, in memory order.
    """

    offset: int
    rows: npt.NDArray[np.uint8]


#: What runs a stage of the outside or inside program: from its input payload to its output payload.
Prepare = Callable[[int, Place, Place], Call]


class Steps:
    """The steps of a model for N images.

    Attributes:
        input: (N, *input shape), where the images are written; a view.
        output: (N, *output shape), where the results are; a view.
        calls: what runs each step, in order.
    """

    def __init__(
        self,
        manifest: Manifest,
        tensors: Mapping[str, Tensor],
        n_images: int,
        memory: npt.NDArray[np.uint8],
        prepare: Mapping[str, Prepare],
        torch_stages: Sequence[TorchStage],
    ) -> None:
        """Lay the values out.

        Args:
            manifest: what the steps are.
            tensors: the values between steps, by name.
            n_images: N.
            memory: at least `memory_bytes` of it.
            prepare: for `outside` and `inside`.
            torch_stages: the exported programs.
        """
        self._n_images, self._tensors = n_images, tensors
        self._memory, self._end = memory, 0
        self._places = {name: self._place(tensor.n_bytes) for name, tensor in tensors.items()}
        self.input = self._values(manifest.input)
        self.output = self._values(manifest.output)
        self.calls = [
            self._torch(step, torch_stages[step.index])
            if step.world == "torch"
            else self._program(step, prepare[step.world])
            for step in manifest.steps
        ]

    def _place(self, n_bytes: int) -> Place:
        offset = self._end
        size = n_bytes * self._n_images
        self._end += _align(size)
        return Place(offset, self._memory[offset : offset + size].reshape(self._n_images, n_bytes))

    def _values(self, name: str) -> npt.NDArray[np.generic]:
        return _values_of(self._places[name].rows, self._tensors[name])

    def _program(self, step: Step, prepare: Prepare) -> Call:
        """A stage takes the values of an image side by side; several are put there first, or taken apart then."""
        inputs, outputs = ([self._places[name] for name in names] for names in (step.inputs, step.outputs))
        given, taken = (
            places[0] if len(places) == 1 else self._place(sum(place.rows.shape[1] for place in places))
            for places in (inputs, outputs)
        )
        call = prepare(step.index, given, taken)
        if len(inputs) == len(outputs) == 1:
            return call

        def joined() -> None:
            for part, place in _parts(given, inputs):
                part[:] = place.rows
            call()
            for part, place in _parts(taken, outputs):
                place.rows[:] = part

        return joined

    def _torch(self, step: Step, stage: TorchStage) -> Call:
        return functools.partial(
            _run_torch, step.index, stage, [*map(self._values, step.inputs)], [*map(self._values, step.outputs)]
        )


def _parts(whole: Place, parts: Sequence[Place]) -> Iterator[tuple[npt.NDArray[np.uint8], Place]]:
    """Each part beside its columns of the whole; nothing for the only one, which is the whole."""
    if len(parts) > 1:
        ends = np.cumsum([part.rows.shape[1] for part in parts])[:-1]
        yield from zip(np.split(whole.rows, ends, axis=1), parts, strict=True)


def _run_torch(
    index: int,
    stage: TorchStage,
    inputs: Sequence[npt.NDArray[np.generic]],
    outputs: Sequence[npt.NDArray[np.generic]],
) -> None:
    """A wrong result of an exported program is refused before it is looked at as bytes."""
    results = stage.run(inputs)
    expected = [(output.dtype, output.shape) for output in outputs]
    got = [(result.dtype, result.shape) for result in results]
    if got != expected:
        raise BundleError(f"expected {expected} from torch stage {index}, but got {got}")
    for output, result in zip(outputs, results, strict=True):
        output[...] = result


def memory_bytes(manifest: Manifest, tensors: Mapping[str, Tensor], n_images: int) -> int:
    """Memory for the steps of N images: every value, and the payloads of stages with several."""
    sizes = [tensor.n_bytes for tensor in tensors.values()]
    for step in manifest.steps:
        sizes += [
            sum(tensors[name].n_bytes for name in names)
            for names in (step.inputs, step.outputs)
            if len(names) > 1 and step.world != "torch"
        ]
    return sum(_align(size * n_images) for size in sizes)


def _values_of(rows: npt.NDArray[np.uint8], tensor: Tensor) -> npt.NDArray[np.generic]:
    """(N, n_bytes) in memory order as (N, *shape), a view."""
    values = rows.view(tensor.dtype)
    if len(tensor.shape) == 3:
        return values.reshape(-1, *tensor.hwc).transpose(0, 3, 1, 2)
    return values.reshape(-1, *tensor.shape)


def _align(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
