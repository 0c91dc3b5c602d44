"""Protect a model: capture, quantize, plan, lower, seal; the result is one bundle file."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch

from cloister import __version__
from cloister.boards import SUITES, TA_BYTES, Board, Suite, load_board
from cloister.bundle.file import write_bundle
from cloister.bundle.keys import check_devices, recipients
from cloister.bundle.manifest import Manifest, Part, SliceEntry, Step, TensorInfo
from cloister.compile import ir
from cloister.compile.capture import Captured, capture
from cloister.compile.lower import lower
from cloister.compile.program import Program, Stage, build_inside, build_outside, constants, smallest_budget
from cloister.compile.stages import World, WorldStage, refuse_foreign, split
from cloister.compile.torch_stage import export_stage
from cloister.enclave.core import OutsideProgram
from cloister.errors import BundleError, DataError, PlanError, UnsupportedModel, UserError
from cloister.layers import Layer, layer_table
from cloister.outputs import check_output
from cloister.planning.plan import BoardPlan, LayerPlan, Plan, Slicing
from cloister.planning.select import select_layers
from cloister.progress import Progress
from cloister.units import format_bytes

if TYPE_CHECKING:
    from cloister.target import Target

__all__ = ["Lowered", "Placed", "Protected", "lower_target", "place", "protect", "protect_lowered"]

#: Images that the scales of int8 activations are taken from.
N_CALIBRATION = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lowered:
    """A target as operations, before any layer is placed.

    Attributes:
        name: the target.
        graph: the operations.
        module: the graph in torch that they come from: the reference to compare with.
        captured: the float32 graph before quantization.
        bits: 8 or 32.
        seed: of the calibration sample.
    """

    name: str
    graph: ir.Graph
    module: torch.fx.GraphModule
    captured: Captured
    bits: Literal[8, 32]
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placed:
    """A lowered target with every layer in its world.

    Attributes:
        lowered: the target.
        reasons: why each inside layer is inside, by name.
        stages: in the order of running.
    """

    lowered: Lowered
    reasons: dict[str, str]
    stages: tuple[WorldStage, ...]

    def stages_in(self, world: World) -> list[Stage]:
        """The stages of one world."""
        return [s.stage for s in self.stages if s.world == world]

    @property
    def steps(self) -> tuple[Step, ...]:
        """The stages as a bundle tells of them."""
        counts = {"inside": 0, "outside": 0, "torch": 0}
        steps = []
        for s in self.stages:
            step = Step(
                world=s.world,
                index=counts[s.world],
                inputs=s.stage.inputs,
                outputs=s.stage.outputs,
                layers=s.layers,
            )
            steps.append(step)
            counts[s.world] += 1
        return tuple(steps)

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The model's input and output, and all that enters or leaves a stage."""
        graph = self.lowered.graph
        names = [graph.input, *(n for s in self.stages for n in (*s.stage.inputs, *s.stage.outputs)), graph.output]
        return tuple(_tensor_info(graph.tensors[name]) for name in dict.fromkeys(names))

    def outside_parts(self) -> list[tuple[str, bytes]]:
        """(kind, bytes) of everything in the clear."""
        parts = []
        if outer := self.stages_in("outside"):
            program = build_outside(self.lowered.graph, outer)
            parts += [("program", program.data), ("constants", constants(program))]
        dynamic = self.lowered.captured.dynamic_batch
        for stage in self.stages_in("torch"):
            data = export_stage(self.lowered.module, self.lowered.graph, stage, dynamic_batch=dynamic)
            parts.append(("torch", data))
        return parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protected:
    """What `protect` wrote.

    Attributes:
        path: the bundle.
        manifest: what is known of it in the clear.
    """

    path: Path
    manifest: Manifest


def lower_target(
    target: Target,
    *,
    bits: Literal[8, 32] = 8,
    calibration: npt.NDArray[np.float32] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Lowered:
    """Capture a target, quantize it (8 bits), and lower it to operations.

    Args:
        target: the model.
        bits: 8: int8; 32: float32.
        calibration: (N, *input_shape) float32, needed for 8 bits unless the target has members; at most
            256 of them, drawn by the seed, give the scales.
        seed: of that sample.
        progress: told how far it is, or None.

    Returns:
        The operations.

    Raises:
        UnsupportedModel: the model cannot be captured.
        DataError: 8 bits and no calibration images, or images of another shape or dtype.
    """
    _check_choice("bits", bits, (8, 32))
    captured = capture(target.model, target.input_shape)
    module = captured.module
    _refuse_mixed_images(captured, lower(module))
    if bits == 8:
        from cloister.compile.quantize import quantize  # takes seconds to import

        module = quantize(captured, _sample(target, calibration, seed), progress)
    return Lowered(name=target.name, graph=lower(module), module=module, captured=captured, bits=bits, seed=seed)


def protect(
    target: Target,
    out: Path | str,
    *,
    inside: str,
    slicing: Slicing = "auto",
    budget_bytes: int | None = None,
    bits: Literal[8, 32] = 8,
    calibration: npt.NDArray[np.float32] | None = None,
    seed: int = 0,
    suite: Suite | None = None,
    board: str | None = None,
    devices: Sequence[str] = ("local",),
    force: bool = False,
    progress: Progress | None = None,
) -> Protected:
    """Compile a target into a sealed bundle.

    Args:
        target: the model.
        out: the bundle file to write.
        inside: which layers go inside: `all`, `none`, `last:K`, or names and globs separated by commas.
        slicing: `auto` cuts layers into as few slices as fit; `off` refuses a layer that does not fit whole.
        budget_bytes: inside memory that may be used; None for what the board has, or no limit without one.
        bits: 8: int8; 32: float32.
        calibration: see `lower_target`.
        seed: see `lower_target`.
        suite: cipher that the inside is sealed with; ChaCha20-Poly1305 for processors without AES instructions. None
            for the board's, or AES-256-GCM without one.
        board: plan for this board: a name of the board profiles, or a `.toml` file with one; None for any.
        devices: who may open it: `local`, or files with public keys.
        force: overwrite an existing file.
        progress: told how far it is, or None.

    Returns:
        The path and the manifest.

    Raises:
        UserError: the model, plan or output is refused; the message says why and what to do.
    """
    check_output(Path(out), force=force)
    check_devices(devices)
    lowered = lower_target(target, bits=bits, calibration=calibration, seed=seed, progress=progress)
    return protect_lowered(
        lowered,
        out,
        inside=inside,
        slicing=slicing,
        budget_bytes=budget_bytes,
        suite=suite,
        board=board,
        devices=devices,
        force=force,
    )


def protect_lowered(
    lowered: Lowered,
    out: Path | str,
    *,
    inside: str,
    slicing: Slicing = "auto",
    budget_bytes: int | None = None,
    suite: Suite | None = None,
    board: str | None = None,
    devices: Sequence[str] = ("local",),
    force: bool = False,
) -> Protected:
    """The second half of `protect`: the same operations can go into many bundles."""
    _check_choice("slicing", slicing, ("auto", "off"))
    profile = load_board(board) if board is not None else None
    suite = suite or (profile.suite if profile else "AES-256-GCM")
    _check_choice("suite", suite, tuple(SUITES))
    budget_bytes = _board_budget(budget_bytes, profile)
    path = Path(out)
    check_output(path, force=force)
    check_devices(devices)
    graph = lowered.graph
    placed = place(lowered, inside)
    inner = placed.stages_in("inside")
    call_bytes = profile.shared_bytes if profile else None
    program, smallest = None, 0
    if inner:
        program = build_inside(graph, inner, budget_bytes=budget_bytes, slicing=slicing, call_bytes=call_bytes)
        smallest = smallest_budget(graph, inner, call_bytes)
    plan = Plan(
        inside=inside,
        slicing=slicing,
        bits=lowered.bits,
        budget_bytes=budget_bytes,
        inside_bytes=program.inside_bytes if program else 0,
        lanes=program.lanes if program else 1,
        smallest_budget_bytes=smallest,
        seed=lowered.seed,
        board=_board_plan(profile),
        layers=tuple(_layer_plan(layer, placed.reasons, program) for layer in layer_table(graph)),
    )
    parts = placed.outside_parts()
    _check_parts(parts)
    manifest = _manifest(placed, plan, program, parts, suite)
    write_bundle(
        path,
        manifest=manifest,
        program=program.data if program else None,
        slices=[s.data for s in program.slices] if program else [],
        outside=[data for _, data in parts],
        recipients=recipients(devices) if program else [],
        force=force,
    )
    return Protected(path=path, manifest=manifest)


def place(lowered: Lowered, inside: str) -> Placed:
    """Put every layer into its world.

    Args:
        lowered: the target.
        inside: see `protect`.

    Raises:
        PlanError: no such layers, or inside layers that share parameters with outside ones.
        UnsupportedModel: an operation of the inside cannot run there.
    """
    graph = lowered.graph
    reasons = select_layers(list(graph.layers()), inside, lowered.captured.aliases)
    _refuse_foreign(graph, reasons)
    _refuse_shared_weights(graph, reasons)
    return Placed(lowered=lowered, reasons=reasons, stages=tuple(split(graph, reasons)))


def _board_budget(budget_bytes: int | None, board: Board | None) -> int | None:
    """The budget, by default what the board has.

    Raises:
        PlanError: the board has less.
    """
    if board is None:
        return budget_bytes
    if budget_bytes is not None and budget_bytes > board.inside_bytes:
        raise PlanError(
            f"expected a budget of at most {board.inside_bytes} bytes for {board.name}, but got {budget_bytes}: "
            f"its heap of {board.heap_bytes} bytes keeps {TA_BYTES} for the trusted application itself",
            "leave out the budget to use all that the board has, or give its profile a larger heap",
        )
    return board.inside_bytes if budget_bytes is None else budget_bytes


def _board_plan(board: Board | None) -> BoardPlan | None:
    return BoardPlan(name=board.name, title=board.title, demonstration=board.weaknesses) if board else None


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name}: expected one of {', '.join(map(repr, choices))}, but got {value!r}")


def _refuse_mixed_images(captured: Captured, graph: ir.Graph) -> None:
    """Operations that run in torch may mix the images of a batch; a session cuts batches as it needs to.

    Raises:
        UnsupportedModel: the answer for an image depends on the others.
    """
    foreign = [op for op in graph.ops if isinstance(op, ir.Foreign)]
    if not foreign or not captured.dynamic_batch:
        return
    x = torch.randn(3, *captured.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = captured.module(x)
        alone = torch.cat([captured.module(image[None]) for image in x])
    if not torch.allclose(
        together, alone, rtol=1e-3, atol=1e-3 * float(together.nan_to_num().abs().max()), equal_nan=True
    ):
        raise UnsupportedModel(
            "the model mixes images: its answer for one depends on the others of the batch",
            [(op.layer or op.module or "(model)", op.operator, "may mix images") for op in foreign],
            "make it work image by image, for example with running statistics in its batch norms",
        )


def _sample(target: Target, calibration: npt.NDArray[np.float32] | None, seed: int) -> torch.Tensor:
    """At most `N_CALIBRATION` images, drawn by the seed."""
    images = calibration
    if images is None and target.members is not None:
        images = target.members[0]
    if images is None or len(images) == 0:
        raise DataError(
            "int8 needs images to take its scales from, but there are none",
            "give training data with --data, or use --bits 32",
        )
    if tuple(images.shape[1:]) != tuple(target.input_shape) or images.dtype != np.float32:
        raise DataError(
            f"calibration images: expected float32 of shape (N, {', '.join(map(str, target.input_shape))}), "
            f"but got {images.dtype} of shape {images.shape}"
        )
    if not np.isfinite(images).all():
        raise DataError("calibration images: expected finite numbers, but some are NaN or infinite")
    order = np.random.default_rng(seed).permutation(len(images))[:N_CALIBRATION]
    return torch.from_numpy(np.ascontiguousarray(images[np.sort(order)]))


def _refuse_foreign(graph: ir.Graph, inside: dict[str, str]) -> None:
    problems = refuse_foreign(graph, inside)
    if problems:
        raise UnsupportedModel(
            f"{len(problems)} operation{'s' if len(problems) > 1 else ''} of the inside cannot run there",
            problems,
            "choose other layers with --inside, or replace these operations in the model",
        )


def _refuse_shared_weights(graph: ir.Graph, inside: dict[str, str]) -> None:
    """What is made of an inside layer's parameters must be inside, too: outside it would give them away.

    Raises:
        PlanError: names the layers that share parameters.
    """
    secret = {name: op.layer for op in graph.ops if op.layer in inside for name in op.reads}
    shared = [
        (op.layer or op.output, name, secret[name])
        for op in graph.ops
        if op.layer not in inside
        for name in op.reads
        if name in secret
    ]
    if shared:
        listed = "; ".join(f"`{layer}` outside uses `{name}` of `{home}`" for layer, name, home in shared)
        together = ",".join(dict.fromkeys([*inside, *(layer for layer, _, _ in shared)]))
        raise PlanError(
            f"inside layers share parameters with outside ones, which would give them away: {listed}",
            f"put them inside together: --inside {together}",
        )


def _layer_plan(layer: Layer, reasons: dict[str, str], program: Program | None) -> LayerPlan:
    """A layer's choice, with its reason in words."""
    if layer.name not in reasons or program is None:
        return LayerPlan(
            name=layer.name,
            op=layer.op,
            inside=False,
            n_slices=0,
            weight_bytes=layer.weight_bytes,
            resident_bytes=0,
            reason="outside: not asked for",
        )
    slices = [s for s in program.slices if s.layer == layer.name]
    resident = sum(len(s.data) for s in slices if s.resident)
    return LayerPlan(
        name=layer.name,
        op=layer.op,
        inside=True,
        n_slices=len(slices),
        weight_bytes=sum(len(s.data) for s in slices),
        resident_bytes=resident,
        reason=f"{reasons[layer.name]}; {_slicing_reason(layer, slices, resident)}",
    )


def _slicing_reason(layer: Layer, slices: Sequence[object], resident: int) -> str:
    size = format_bytes(layer.weight_bytes)
    cut = f"{size} whole" if len(slices) <= layer.uses else f"{size} cut into {len(slices)} slices to fit"
    if resident == 0:
        return f"{cut}, streamed: no room to stay"
    return f"{cut}, " + ("stays inside" if resident >= layer.weight_bytes else f"{format_bytes(resident)} stay inside")


def _check_parts(parts: Sequence[tuple[str, bytes]]) -> None:
    """Open the outside parts as a session does, so that no bundle is written that could not be loaded."""
    data = dict(parts)
    if "program" in data:
        OutsideProgram(data["program"], data["constants"])
    stages = [part for kind, part in parts if kind == "torch"]
    if stages:
        from cloister.enclave.torch_stage import TorchStage

        try:
            for number, part in enumerate(stages):
                TorchStage(part, f"torch part {number}")
        except BundleError as error:
            problems = [("(model)", "torch", str(error))]
            raise UnsupportedModel(f"a part of the model cannot run outside: {error}", problems) from error


def _manifest(
    placed: Placed,
    plan: Plan,
    program: Program | None,
    parts: Sequence[tuple[str, bytes]],
    suite: Suite,
) -> Manifest:
    return Manifest(
        cloister=__version__,
        model=placed.lowered.name,
        suite=suite,
        input=placed.lowered.graph.input,
        output=placed.lowered.graph.output,
        tensors=placed.tensors,
        steps=placed.steps,
        plan=plan,
        parts=_part_table(parts),
        slices=tuple(
            SliceEntry(s.layer, s.first_unit, s.n_units, len(s.data), s.resident)
            for s in (program.slices if program else ())
        ),
    )


def _tensor_info(tensor: ir.Tensor) -> TensorInfo:
    return TensorInfo(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        scale=tensor.scale,
        zero_point=tensor.zero_point,
    )


def _part_table(parts: Sequence[tuple[str, bytes]]) -> tuple[Part, ...]:
    table, offset = [], 0
    for kind, data in parts:
        digest = hashlib.sha256(data).hexdigest()
        table.append(Part(kind=kind, offset=offset, n_bytes=len(data), sha256=digest))  # type: ignore[arg-type]
        offset += len(data)
    return tuple(table)
