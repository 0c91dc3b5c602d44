"""Whether a manifest is consistent in itself: what its schema cannot say."""

from __future__ import annotations

import math
from collections.abc import Iterator

from cloister.bundle.manifest import Manifest, TensorInfo
from cloister.errors import BundleError

__all__ = ["check_manifest"]

_MAX_LANES = 64
#: Programs count in 32-bit words, so no tensor of one image is longer.
_MAX_TENSOR_BYTES = 2**32 - 1


def check_manifest(manifest: Manifest) -> None:
    """Check that steps refer to known tensors and parts, and parts follow each other.

    Raises:
        BundleError: names all that is wrong.
    """
    problems = [
        *_check_tensors(manifest),
        *_check_steps(manifest),
        *_check_worlds(manifest),
        *_check_slices(manifest),
        *_check_parts(manifest),
    ]
    if problems:
        raise BundleError("the manifest contradicts itself: " + "; ".join(problems))


def _check_tensors(manifest: Manifest) -> Iterator[str]:
    names = [tensor.name for tensor in manifest.tensors]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield f"expected one tensor `{name}`, but got {names.count(name)}"
    for tensor in manifest.tensors:
        yield from _check_tensor(tensor)
    dtypes = {tensor.name: tensor.dtype for tensor in manifest.tensors}
    for role, name in (("input", manifest.input), ("output", manifest.output)):
        if dtypes.get(name) != "float32":
            yield f"expected the {role} `{name}` among the tensors as float32, but got {dtypes.get(name)}"


def _check_tensor(tensor: TensorInfo) -> Iterator[str]:
    width = 1 if tensor.dtype == "int8" else 4
    if min(tensor.shape, default=1) < 1 or math.prod(tensor.shape) * width > _MAX_TENSOR_BYTES:
        yield f"tensor `{tensor.name}` has an impossible shape {tensor.shape}"
    if not (math.isfinite(tensor.scale) and tensor.scale > 0 and -128 <= tensor.zero_point <= 127):
        yield f"tensor `{tensor.name}` has an impossible scale {tensor.scale} or zero point {tensor.zero_point}"


def _check_steps(manifest: Manifest) -> Iterator[str]:
    """Each step reads what was made before it, and makes what was not."""
    known = {tensor.name for tensor in manifest.tensors}
    made = {manifest.input}
    for index, step in enumerate(manifest.steps):
        if not (step.inputs and step.outputs):
            yield f"step {index} has no inputs or no outputs"
        for name in step.inputs:
            if name not in made:
                yield f"step {index} reads `{name}`, which nothing before it makes"
        for name in step.outputs:
            if name not in known:
                yield f"step {index} makes `{name}`, which is no known tensor"
            if name in made:
                yield f"step {index} makes `{name}`, which is there already"
            made.add(name)
    if manifest.output not in made:
        yield f"no step makes the output `{manifest.output}`"


def _check_worlds(manifest: Manifest) -> Iterator[str]:
    """Stages and parts that steps refer to are there."""
    kinds = [part.kind for part in manifest.parts]
    n_outside = sum(step.world == "outside" for step in manifest.steps)
    for kind in ("program", "constants"):
        if kinds.count(kind) != (1 if n_outside else 0):
            yield f"{n_outside} steps run in the outside program, but {kinds.count(kind)} parts are its `{kind}`"
    for world in ("inside", "outside", "torch"):
        indices = [step.index for step in manifest.steps if step.world == world]
        if sorted(indices) != list(range(len(indices))):
            yield f"expected each `{world}` stage once, counted from 0, but got {indices}"
    n_torch = sum(step.world == "torch" for step in manifest.steps)
    if kinds.count("torch") != n_torch:
        yield f"{n_torch} steps run in torch, but {kinds.count('torch')} parts are of that kind"


def _check_slices(manifest: Manifest) -> Iterator[str]:
    for index, piece in enumerate(manifest.slices):
        if piece.first_unit < 0 or piece.n_units < 1 or piece.n_bytes < 1:
            yield f"slice {index} of `{piece.layer}` has an impossible range or size: {piece}"
    if not 1 <= manifest.plan.lanes <= _MAX_LANES:
        yield f"expected 1 to {_MAX_LANES} lanes, but got {manifest.plan.lanes}"
    inside = {layer for step in manifest.steps if step.world == "inside" for layer in step.layers}
    for planned in manifest.plan.layers:
        if planned.name in inside and not planned.inside:
            yield f"the plan leaves `{planned.name}` outside, but an inside step has it"


def _check_parts(manifest: Manifest) -> Iterator[str]:
    end = 0
    for index, part in enumerate(manifest.parts):
        if part.offset != end or part.n_bytes < 0:
            yield f"expected part {index} ({part.kind}) at {end}, but got {part.n_bytes} bytes at {part.offset}"
        end = part.offset + max(part.n_bytes, 0)
