"""What somebody outside sees of a protected model: the view, made only from what lies in the clear.

A view holds the parameters outside as they are deployed, and the stages outside as functions of them. What is inside
is not left out of it: it was never there. So nothing that is computed from a view can depend on a hidden weight, except
through what was observed (`observations.py`): values that crossed, gradients that came back, and released outputs.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor, fx

from cloister.attacks.twin import ProgramTwin
from cloister.bundle.file import read_bundle
from cloister.bundle.manifest import Step, TensorInfo
from cloister.enclave.torch_stage import TorchStage
from cloister.protection import Lowered, Placed, place

__all__ = ["Inside", "Run", "View", "view_of_bundle", "view_of_placed", "view_of_plan"]

#: What stands for the inside when a view is run: (step, its inputs) to its outputs, each (N, *shape).
Inside = Callable[[Step, list[Tensor]], list[Tensor]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What came out of running a view.

    Attributes:
        values: all that enters or leaves a stage, by name, (N, *shape); of int8 as real numbers.
        activations: what each visible layer gives, by name, (N, C, H, W); of int8 in steps from the zero point.
    """

    values: dict[str, Tensor]
    activations: dict[str, Tensor]


class _TorchTwin:
    """An exported program outside."""

    def __init__(self, data: bytes, number: int) -> None:
        module = TorchStage(data, f"torch part {number}").module
        assert isinstance(module, fx.GraphModule)
        for node in list(module.graph.nodes):
            if node.op == "call_module" and node.target == "_guards_fn":
                module.graph.erase_node(node)  # sessions check their input; one image at a time is as good as many
        module.recompile()
        self._module, self._prefix = module, f"torch{number}."
        self.parameters = {self._prefix + name: one.detach().clone() for name, one in module.named_parameters()}

    def run(self, inputs: Sequence[Tensor], parameters: Mapping[str, Tensor]) -> list[Tensor]:
        own = {name.removeprefix(self._prefix): parameters[name] for name in self.parameters}
        outputs = torch.func.functional_call(self._module, own, tuple(inputs))
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)


class View:
    """The outside of a model.

    Args:
        model: name of the target.
        steps: the stages in the order of running; those inside are known by what enters and leaves them.
        tensors: all that enters or leaves a stage, and the model's input and output.
        ends: names of input and output.
        parts: (kind, bytes) of what lies in the clear.

    Attributes:
        model: name of the target.
        steps: the stages in the order of running.
        tensors: by name.
        input: name of the model's input.
        output: name of the model's output.
        parameters: what lies in the clear, by name, float32 (`twin.ProgramTwin`).
        sha256: of all of it.
    """

    def __init__(
        self,
        *,
        model: str,
        steps: Sequence[Step],
        tensors: Sequence[TensorInfo],
        ends: tuple[str, str],
        parts: Sequence[tuple[str, bytes]],
    ) -> None:
        self.model, self.steps = model, tuple(steps)
        self.tensors = {info.name: info for info in tensors}
        self.input, self.output = ends
        clear = dict(parts)
        outside = [step for step in self.steps if step.world == "outside"]
        self._program = (
            ProgramTwin(clear["program"], clear["constants"], outside, self.tensors) if "program" in clear else None
        )
        torch_parts = [data for kind, data in parts if kind == "torch"]
        self._torch = [_TorchTwin(data, number) for number, data in enumerate(torch_parts)]
        self.parameters: dict[str, Tensor] = dict(self._program.parameters) if self._program else {}
        for twin in self._torch:
            self.parameters |= twin.parameters
        self.sha256 = _digest(self.steps, self.tensors, parts)

    @property
    def sees_parameters(self) -> bool:
        """Whether any parameter is outside."""
        return bool(self.parameters)

    @property
    def layers_inside(self) -> tuple[str, ...]:
        """Names of the layers that are hidden: the manifest tells them, not what is in them."""
        return tuple(dict.fromkeys(name for step in self.steps if step.world == "inside" for name in step.layers))

    @property
    def crossing(self) -> tuple[str, ...]:
        """Names of all that goes in or comes out."""
        names = (name for step in self.steps if step.world == "inside" for name in (*step.inputs, *step.outputs))
        return tuple(dict.fromkeys(names))

    @property
    def output_is_outside(self) -> bool:
        """Whether the model's output is computed outside, so that nothing can hold it back."""
        return not any(self.output in step.outputs for step in self.steps if step.world == "inside")

    def run(
        self,
        images: Tensor,
        inside: Inside,
        parameters: Mapping[str, Tensor] | None = None,
        begun: Mapping[str, Tensor] | None = None,
    ) -> Run:
        """Run the model, with something in the place of the inside.

        Args:
            images: (N, *input shape) float32.
            inside: called for every inside step.
            parameters: in place of those in the clear.
            begun: values that are known already: steps that give no others are left out.
        """
        known = self.parameters if parameters is None else parameters
        run = Run(values={self.input: images, **(begun or {})}, activations={})
        for step in self.steps:
            if all(name in run.values for name in step.outputs):
                continue
            inputs = [run.values[name] for name in step.inputs]
            if step.world == "inside":
                outputs = inside(step, inputs)
            elif step.world == "torch":
                outputs = self._torch[step.index].run(inputs, known)
            else:
                assert self._program is not None
                outputs = self._program.run(step.index, inputs, known, run.activations)
            run.values.update(zip(step.outputs, outputs, strict=True))
        return run


def view_of_plan(lowered: Lowered, inside: str) -> View:
    """What is seen if these layers are inside.

    It is made of the bytes that a bundle would hold in the clear.

    Args:
        lowered: the target (`protection.lower_target`): int8 where that is to be deployed.
        inside: `none`, `all`, `last:K`, or names and globs of layers separated by commas.

    Raises:
        PlanError: no such layers, or inside layers that share parameters with outside ones.
        UnsupportedModel: an operation of the inside cannot run there.
    """
    return view_of_placed(place(lowered, inside))


def view_of_placed(placed: Placed) -> View:
    """What is seen of a target whose layers have been placed."""
    graph = placed.lowered.graph
    return View(
        model=placed.lowered.name,
        steps=placed.steps,
        tensors=placed.tensors,
        ends=(graph.input, graph.output),
        parts=placed.outside_parts(),
    )


def view_of_bundle(path: Path | str) -> View:
    """What is seen of a bundle file: what really lies in the clear in it.

    Raises:
        UserError: there is no such file.
        BundleError: it is damaged, or of another version.
    """
    with read_bundle(path) as bundle:
        manifest = bundle.manifest
        parts = [(part.kind, bytes(bundle.part(index))) for index, part in enumerate(manifest.parts)]
    return View(
        model=manifest.model,
        steps=manifest.steps,
        tensors=manifest.tensors,
        ends=(manifest.input, manifest.output),
        parts=parts,
    )


def _digest(steps: Sequence[Step], tensors: Mapping[str, TensorInfo], parts: Sequence[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256(msgspec.json.encode([steps, list(tensors.values())]))
    for kind, data in parts:
        digest.update(kind.encode() + hashlib.sha256(data).digest())
    return digest.hexdigest()
