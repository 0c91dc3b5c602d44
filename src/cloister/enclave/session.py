"""Run a bundle: outside steps here, inside steps in the enclave."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import msgspec
import numpy as np
import numpy.typing as npt

from cloister.bundle.file import Bundle, read_bundle
from cloister.bundle.manifest import Step
from cloister.compile.ir import Tensor
from cloister.enclave.client import Enclave
from cloister.enclave.connect import check_enclave, connect
from cloister.enclave.core import OutsideProgram, allocate
from cloister.enclave.inside import Inside
from cloister.enclave.instructions import allowed_sets
from cloister.enclave.local import MIN_HEAP_BYTES
from cloister.enclave.steps import Prepare, Steps, memory_bytes
from cloister.enclave.wire import EnclaveInfo, EnclaveStats
from cloister.errors import (
    BundleError,
    InputError,
)
from cloister.planning.plan import BoardPlan

if TYPE_CHECKING:
    from cloister.enclave.torch_stage import TorchStage

__all__ = ["Session", "Stats", "StepStats", "load"]

#: Parts of the outside program, in the order in which it is opened.
_OUTSIDE = ("program", "constants")
#: Images travel together until this much memory is shared; a larger image travels alone.
_PIECE_BYTES = 4 << 20
#: Steps are kept for so many numbers of images.
_KEPT_STEPS = 4


class StepStats(msgspec.Struct, frozen=True, kw_only=True):
    """One step of the model.

    Attributes:
        world: `inside`, `outside` or `torch`.
        layers: names of the layers with parameters in it.
        calls: how often it was run; a batch may need several.
        seconds: in all; for an inside step with the crossing.
    """

    world: Literal["inside", "outside", "torch"]
    layers: tuple[str, ...]
    calls: int
    seconds: float


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """What a session has done so far.

    Attributes:
        enclave: `local`, `optee`, or None if nothing is inside.
        isolation: what keeps the rest of the machine out of the enclave, in words.
        board: the board that the enclave was built for, as it says itself; None if it says none.
        planned_for: the board that the bundle was planned for, or None.
        images: images that were run.
        inside_bytes: inside memory that the program needs.
        inside_peak_bytes: the most that the enclave measured; OP-TEE counts all sessions of the trusted application.
        budget_bytes: the plan's limit, or None.
        calls: crossings into the enclave to run a stage.
        bytes_in: payload that went in.
        bytes_out: payload that came out.
        slices_opened: how often the enclave opened a slice; those that stay are opened once.
        slice_bytes_opened: their bytes.
        seconds_opening: time that the enclave spent opening slices, or waiting for one that a second thread opens.
        seconds_per_opening: the mean for one slice; 0 if none was opened.
        seconds_computing: time that the enclave spent computing.
        stages: the steps in order.
    """

    enclave: str | None
    isolation: str | None
    board: str | None
    planned_for: BoardPlan | None
    images: int
    inside_bytes: int
    inside_peak_bytes: int
    budget_bytes: int | None
    calls: int
    bytes_in: int
    bytes_out: int
    slices_opened: int
    slice_bytes_opened: int
    seconds_opening: float
    seconds_per_opening: float
    seconds_computing: float
    stages: tuple[StepStats, ...]


def load(path: Path | str, enclave: str = "local", *, window_bytes: int | None = None) -> Session:
    """Open a bundle and load its inside into an enclave.

    Args:
        path: the `.cloister` file.
        enclave: `local`, a process on this machine; `emulator`: OP-TEE in QEMU; `optee`: OP-TEE on this board.
        window_bytes: at most this many bytes of sealed slices are shown to the enclave at a time, but at least one
            slice; None for all of them.

    Returns:
        The session. Close it, or use it as a context manager.

    Raises:
        UserError: there is no such file or enclave.
        IntegrityError: the bundle is damaged, changed, or for another device.
        EnclaveError: the enclave cannot be started, or the inside does not fit.

    Example:
        >>> with load("model.cloister") as session:  # doctest: +SKIP
        ...     scores = session.run(images)
    """
    check_enclave(enclave)
    bundle = read_bundle(path)
    try:
        return Session(bundle, enclave=enclave, window_bytes=window_bytes)
    except BaseException:
        bundle.close()
        raise


@dataclasses.dataclass
class _Counter:
    """What a step has done so far."""

    calls: int = 0
    seconds: float = 0.0


class Session:
    """A loaded model.

    Not thread-safe: one call at a time, and one session for each thread. A context manager; `load` makes one.

    Attributes:
        bundle: the open bundle.
        info: what the enclave says of itself, or None if nothing is inside.
    """

    def __init__(self, bundle: Bundle, *, enclave: str = "local", window_bytes: int | None = None) -> None:
        """Load a bundle; from here on the session closes it.

        Args:
            bundle: an open bundle.
            enclave: see `load`.
            window_bytes: see `load`.

        Raises:
            IntegrityError, EnclaveError: see `load`.
        """
        self.bundle = bundle
        manifest = bundle.manifest
        self._tensors = {info.name: Tensor(**msgspec.structs.asdict(info)) for info in manifest.tensors}
        self._counters = [_Counter() for _ in manifest.steps]
        self._images = 0
        self._piece_images = max(1, _PIECE_BYTES // self._memory_bytes(1))
        parts: dict[str, int] = {part.kind: index for index, part in enumerate(manifest.parts) if part.kind != "torch"}
        self._outside = self._open_outside(*(bundle.part(parts[kind]) for kind in _OUTSIDE)) if parts else None
        self._check_outside()
        self._torch = _open_torch(bundle)
        self._steps: dict[int, Steps] = {}
        self._inside = self._open_inside(enclave, window_bytes)
        if self._inside:
            self._piece_images = self._whole_groups(min(self._piece_images, self._inside.most_images))

    def _memory_bytes(self, n_images: int) -> int:
        return memory_bytes(self.bundle.manifest, self._tensors, n_images)

    def _whole_groups(self, n_images: int) -> int:
        """Whole groups of lanes if it is more than one, since a group opens its slices."""
        lanes = self.bundle.manifest.plan.lanes
        return n_images - n_images % lanes if n_images > lanes else n_images

    def _open_outside(self, program: bytes, constants: bytes | memoryview) -> OutsideProgram:
        return OutsideProgram(program, constants, allowed_sets())

    def _open_inside(self, enclave: str, window_bytes: int | None) -> Inside | None:
        step_bytes = max(
            (self._step_bytes(step) for step in self.bundle.manifest.steps if step.world == "inside"), default=None
        )
        if step_bytes is None:
            return None
        opened = self._connect(enclave, self._memory_bytes(self._piece_images))
        return Inside(self.bundle, opened, step_bytes=step_bytes, window_bytes=window_bytes)

    def _connect(self, enclave: str, payload_bytes: int) -> Enclave:
        plan = self.bundle.manifest.plan
        heap_bytes = plan.inside_bytes if plan.budget_bytes is None else plan.budget_bytes
        return connect(
            enclave,
            self.bundle.file,
            store_range=self._store_range(),
            payload_bytes=payload_bytes,
            heap_bytes=max(heap_bytes, MIN_HEAP_BYTES),  # the program's own budget still holds inside
        )

    def _store_range(self) -> tuple[int, int]:
        """(offset, bytes) of what is sealed in the bundle: program and slices, which lie side by side."""
        start, slices = self.bundle.sealed_program.offset, self.bundle.slices
        return start, slices.offset + slices.n_bytes - start

    def _check_outside(self) -> None:
        """Manifest and outside program agree on what goes in and out of each stage."""
        stages = self._outside.stages if self._outside else ()
        for step in self.bundle.manifest.steps:
            if step.world != "outside":
                continue
            expected = self._n_bytes(step.inputs), self._n_bytes(step.outputs)
            sizes = stages[step.index] if step.index < len(stages) else None
            if sizes is None or (sizes.in_bytes, sizes.out_bytes) != expected:
                raise BundleError(
                    f"{self.bundle.path}: expected an outside stage {step.index} of {expected} bytes in and out, "
                    f"but got {sizes}"
                )

    def _n_bytes(self, names: Sequence[str]) -> int:
        return sum(self._tensors[name].n_bytes for name in names)

    def _step_bytes(self, step: Step) -> int:
        """Payload of one image in both directions."""
        return self._n_bytes(step.inputs) + self._n_bytes(step.outputs)

    @property
    def info(self) -> EnclaveInfo | None:
        """What the enclave says of itself, or None if nothing is inside."""
        return self._inside.enclave.info if self._inside else None

    @property
    def enclave_process_id(self) -> int | None:
        """Id of the enclave's process, or None if nothing is inside."""
        return self._inside.enclave.process_id if self._inside else None

    def run(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run a batch.

        Args:
            x: (N, *input shape) float32, finite; N may be 0.

        Returns:
            (N, *output shape) float32.

        Raises:
            InputError: the input is anything else.
            IntegrityError: a slice was changed.
            EnclaveError: the enclave failed; the session is of no more use if it crashed.
        """
        _check_input(x, self._tensors[self.bundle.manifest.input])
        result = np.empty((len(x), *self._tensors[self.bundle.manifest.output].shape), np.float32)
        for start in range(0, len(x), self._piece_images):
            piece = x[start : start + self._piece_images]
            steps = self._steps.get(len(piece)) or self._make_steps(len(piece))
            steps.input[...] = piece
            for call, counter in zip(steps.calls, self._counters, strict=True):
                begin = time.perf_counter()
                call()
                counter.calls += 1
                counter.seconds += time.perf_counter() - begin
            result[start : start + len(piece)] = steps.output
            self._images += len(piece)
        return result

    def _make_steps(self, n_images: int) -> Steps:
        """The steps for so many images: kept for the next piece or run, which has as many or is a last one."""
        prepare: dict[str, Prepare] = {}
        if outside := self._outside:
            prepare["outside"] = lambda stage, given, taken: outside.prepare(stage, given.rows, taken.rows)
        if self._inside:
            prepare["inside"] = self._inside.prepare
        memory = self._inside.memory if self._inside else allocate(self._memory_bytes(n_images))
        steps = Steps(self.bundle.manifest, self._tensors, n_images, memory, prepare, self._torch)
        while len(self._steps) >= _KEPT_STEPS:
            del self._steps[next(iter(self._steps))]
        self._steps[n_images] = steps
        return steps

    @property
    def stats(self) -> Stats:
        """What the session has done so far; still there after it is closed.

        The enclave counts peak, slices and times itself and is asked for them here and when the session closes: of one
        that crashed this gives what it told last, at first 0. Everything else the session counts.
        """
        inside = self._inside
        measured = inside.stats() if inside else EnclaveStats()
        seconds_opening = measured.opening_ns / 1e9
        manifest = self.bundle.manifest
        return Stats(
            enclave=inside.enclave.info.kind if inside else None,
            isolation=inside.enclave.info.isolation if inside else None,
            board=(inside.enclave.info.board or None) if inside else None,
            planned_for=manifest.plan.board,
            images=self._images,
            inside_bytes=inside.loaded.inside_bytes if inside else 0,
            inside_peak_bytes=measured.heap_peak_bytes,
            budget_bytes=manifest.plan.budget_bytes,
            calls=inside.calls if inside else 0,
            bytes_in=inside.bytes_in if inside else 0,
            bytes_out=inside.bytes_out if inside else 0,
            slices_opened=measured.slices_opened,
            slice_bytes_opened=measured.slice_bytes_opened,
            seconds_opening=seconds_opening,
            seconds_per_opening=seconds_opening / max(1, measured.slices_opened),
            seconds_computing=measured.computing_ns / 1e9,
            stages=tuple(
                StepStats(world=step.world, layers=step.layers, calls=counter.calls, seconds=counter.seconds)
                for step, counter in zip(manifest.steps, self._counters, strict=True)
            ),
        )

    def close(self) -> None:
        """End the enclave and close the bundle. May be called again."""
        self._steps.clear()  # they look into the enclave's memory
        if self._inside:
            self._inside.close()
        self.bundle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# --- The outside -------------------------------------------------------------------------------------------------


def _open_torch(bundle: Bundle) -> list[TorchStage]:
    parts = [index for index, part in enumerate(bundle.manifest.parts) if part.kind == "torch"]
    if not parts:
        return []
    from cloister.enclave.torch_stage import TorchStage  # imports torch: seconds, and not on every device

    return [TorchStage(bundle.part(index), f"{bundle.path}: outside part {index}") for index in parts]


# --- Tensors -----------------------------------------------------------------------------------------------------


def _check_input(x: npt.NDArray[np.float32], tensor: Tensor) -> None:
    expected = f"float32 of shape ({', '.join(map(str, ('N', *tensor.shape)))})"
    if not isinstance(x, np.ndarray):
        raise InputError(f"expected a numpy array, {expected}, but got {type(x).__name__}")
    if x.dtype != np.float32 or x.shape[1:] != tensor.shape or x.ndim == 0:
        hint = "convert it with x.astype(numpy.float32)" if x.dtype != np.float32 else None
        raise InputError(f"expected {expected}, but got {x.dtype} of shape {x.shape}", hint)
    finite = np.isfinite(x)
    if not finite.all():
        where = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise InputError(f"expected finite values, but got {x[where]} at {where}, the first of {(~finite).sum()}")
