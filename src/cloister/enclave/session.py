"""Run a bundle: outside steps here, inside steps in the enclave."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import msgspec
import numpy as np
import numpy.typing as npt

from cloister.boards import SUITES
from cloister.bundle.file import Bundle, read_bundle, sealed_slice_bytes
from cloister.bundle.keys import fingerprint
from cloister.bundle.manifest import Step
from cloister.compile.ir import Tensor
from cloister.enclave import wire
from cloister.enclave.client import CONTROL_BYTES
from cloister.enclave.connect import check_enclave, connect
from cloister.enclave.local import MIN_HEAP_BYTES
from cloister.enclave.wire import EnclaveInfo, EnclaveStats, Kind, Loaded, Parameter, Region
from cloister.errors import (
    BundleError,
    EnclaveError,
    EnclaveOutOfMemory,
    InputError,
    NotForThisDevice,
    ProtocolError,
)
from cloister.units import format_bytes

if TYPE_CHECKING:
    from cloister.enclave.core import OutsideProgram
    from cloister.enclave.torch_stage import TorchStage

__all__ = ["Session", "Stats", "StepStats", "load"]

#: One image's value for each image of a piece: (n, n_bytes) uint8, in memory order.
_Rows = npt.NDArray[np.uint8]

#: Images travel together until this much memory is shared; a larger image travels alone.
_PIECE_BYTES = 4 << 20
_ALIGNMENT = 64
#: What is shared with a trusted application is counted in these.
_PAGE_BYTES = 4096


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
        images: images that were run.
        inside_bytes: inside memory that the program needs.
        inside_peak_bytes: the most that the enclave measured.
        budget_bytes: the plan's limit, or None.
        calls: crossings into the enclave to run a stage.
        bytes_in: payload that went in.
        bytes_out: payload that came out.
        slices_opened: how often the enclave opened a slice; those that stay are opened once.
        slice_bytes_opened: their bytes.
        seconds_opening: time that the enclave spent opening slices.
        seconds_per_opening: the mean for one slice; 0 if none was opened.
        seconds_computing: time that the enclave spent computing.
        stages: the steps in order.
    """

    enclave: str | None
    isolation: str | None
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
        enclave: `local`, a process on this machine; `optee`: OP-TEE on this board.
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
        self._piece_images = max(1, _PIECE_BYTES // max(map(self._step_bytes, manifest.steps), default=1))
        self._outside = _open_outside(bundle)
        self._check_outside()
        self._torch = _open_torch(bundle)
        self._inside = self._open_inside(enclave, window_bytes)
        if self._inside:
            self._piece_images = self._whole_groups(min(self._piece_images, self._inside.most_images))

    def _whole_groups(self, n_images: int) -> int:
        """Whole groups of lanes if it is more than one, since a group opens its slices."""
        lanes = self.bundle.manifest.plan.lanes
        return n_images - n_images % lanes if n_images > lanes else n_images

    def _open_inside(self, enclave: str, window_bytes: int | None) -> _Inside | None:
        inside = [self._step_bytes(step) for step in self.bundle.manifest.steps if step.world == "inside"]
        if not inside:
            return None
        payload_bytes = self._piece_images * max(inside) + 2 * _ALIGNMENT
        return _Inside(self.bundle, enclave, payload_bytes, max(inside), window_bytes)

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
        manifest = self.bundle.manifest
        _check_input(x, self._tensors[manifest.input])
        output = self._tensors[manifest.output]
        result = np.empty((len(x), *output.shape), np.float32)
        for start in range(0, len(x), self._piece_images):
            piece = x[start : start + self._piece_images]
            values = {manifest.input: _to_rows(piece, self._tensors[manifest.input])}
            for step, counter in zip(manifest.steps, self._counters, strict=True):
                begin = time.perf_counter()
                values.update(self._run_step(step, values))
                counter.calls += 1
                counter.seconds += time.perf_counter() - begin
            result[start : start + len(piece)] = _from_rows(values[manifest.output], output)
            self._images += len(piece)
        return result

    def _run_step(self, step: Step, values: dict[str, _Rows]) -> dict[str, _Rows]:
        inputs = [values[name] for name in step.inputs]
        outputs = [self._tensors[name] for name in step.outputs]
        if step.world == "torch":
            images = [_from_rows(rows, self._tensors[name]) for name, rows in zip(step.inputs, inputs, strict=True)]
            results = self._torch[step.index].run(images)
            return _check_results(step, results, outputs, len(inputs[0]))
        payload = inputs[0] if len(inputs) == 1 else np.concatenate(inputs, axis=1)
        if step.world == "inside":
            assert self._inside is not None  # the bundle's checks guarantee it
            rows = self._inside.run(step.index, payload, self._n_bytes(step.outputs))
        else:
            assert self._outside is not None
            rows = self._outside.run(step.index, payload)
        ends = np.cumsum([tensor.n_bytes for tensor in outputs])[:-1]
        return dict(zip(step.outputs, np.split(rows, ends, axis=1), strict=True))

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
        if self._inside:
            self._inside.close()
        self.bundle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# --- The inside --------------------------------------------------------------------------------------------------


class _Inside:
    """A bundle's inside program, loaded into an enclave.

    Attributes:
        enclave: the session with it.
        loaded: what the enclave says of the program.
        most_images: how many images may travel together.
    """

    def __init__(
        self, bundle: Bundle, enclave: str, payload_bytes: int, step_bytes: int, window_bytes: int | None
    ) -> None:
        self._bundle = bundle
        self._windows = _Windows(bundle, window_bytes)
        self.calls = self.bytes_in = self.bytes_out = 0
        self._stats = EnclaveStats()
        plan = bundle.manifest.plan
        heap_bytes = plan.inside_bytes if plan.budget_bytes is None else plan.budget_bytes
        heap_bytes = max(heap_bytes, MIN_HEAP_BYTES)  # the program's own budget still holds inside
        start = bundle.sealed_program.offset
        self.enclave = connect(
            enclave,
            bundle.file,
            store_range=(start, bundle.slices.offset + bundle.slices.n_bytes - start),
            payload_bytes=payload_bytes,
            heap_bytes=heap_bytes,
        )
        try:
            self.most_images = self._most_images(step_bytes)
            self.loaded = self._load()
            self._open_resident()
        except BaseException:
            self.enclave.close()
            raise

    def _load(self) -> Loaded:
        bundle, key = self._bundle, self.enclave.info.public_key
        recipient = next((r for r in bundle.recipients if r.public_key == key), None)
        if recipient is None:
            others = ", ".join(fingerprint(r.public_key) for r in bundle.recipients[:4])
            raise NotForThisDevice(
                f"{bundle.path}: expected a bundle for this device ({fingerprint(key)}), but it is for {others}",
                "protect the model for this device's public key",
            )
        suite = SUITES[bundle.manifest.suite]
        block = wire.pack_load(bundle.bundle_id, bundle.manifest_sha256, recipient.enc, recipient.sealed_key, suite)
        loaded = self.enclave.load(block, (bundle.sealed_program.offset, bundle.sealed_program.n_bytes))
        manifest = bundle.manifest
        expected = sum(step.world == "inside" for step in manifest.steps), len(manifest.slices)
        if (loaded.n_stages, loaded.n_slices) != expected:
            raise BundleError(
                f"{bundle.path}: expected {expected[0]} stages and {expected[1]} slices inside, "
                f"but got {loaded.n_stages} and {loaded.n_slices}"
            )
        return loaded

    def _open_resident(self) -> None:
        """Open all slices that stay: damage shows now, and the first run is as fast as any other."""
        for first, count, window in self._windows.resident(self._room_bytes()):
            self.enclave.open_slices(first, count, window)

    def _most_images(self, step_bytes: int) -> int:
        """How many images may travel together beside the largest slice; `step_bytes` is the payload of one."""
        if self.enclave.shared_bytes is None:
            return sys.maxsize
        largest_bytes = self._windows.largest_bytes
        # The run block has a page of its own; images and results waste less than one each.
        most = (self.enclave.shared_bytes - 3 * _PAGE_BYTES - _pages(largest_bytes)) // step_bytes
        if most < 1:
            raise EnclaveOutOfMemory(
                f"{self._bundle.path}: one call may take {format_bytes(self.enclave.shared_bytes)} along, "
                f"but the largest slice has {format_bytes(largest_bytes)} and an image {format_bytes(step_bytes)}",
                "protect the model for this --board: it cuts layers into smaller slices",
            )
        return most

    def run(self, stage: int, payload: _Rows, out_bytes: int) -> _Rows:
        """Run a stage on (N, in_bytes); gives (N, out_bytes)."""
        n_images = len(payload)
        images = Parameter(Kind.INPUT, Region.PAYLOAD, _align(CONTROL_BYTES), payload.size)
        results = Parameter(Kind.OUTPUT, Region.PAYLOAD, _align(images.offset + images.size), n_images * out_bytes)
        memory = np.frombuffer(self.enclave.payload, np.uint8)
        memory[images.offset : images.offset + images.size] = payload.reshape(-1)
        self._call_until_done(stage, n_images, images, results)
        self.bytes_in += images.size
        self.bytes_out += results.size
        # A copy: the memory is the enclave's to write in the next call.
        return memory[results.offset : results.offset + results.size].reshape(n_images, out_bytes).copy()

    def _call_until_done(self, stage: int, n_images: int, images: Parameter, results: Parameter) -> None:
        """The enclave alone says which slices it needs; each answer that is not an error gets it further."""
        first, resume, before = 0, False, (-1, -1)
        while True:
            count, window = self._windows.at(first, self._room_bytes(images, results))
            block = wire.pack_run(stage, n_images, first, count, resume=resume)
            state = self.enclave.run(block, images, results, window)
            self.calls += 1
            if state.needed_slice is None:
                return
            here = (state.images_done, state.needed_slice)
            if state.needed_slice >= self.loaded.n_slices or here == before or state.images_done > n_images:
                raise ProtocolError(f"the enclave asks for slice {state.needed_slice} and does not get any further")
            first, resume, before = state.needed_slice, True, here

    def _room_bytes(self, *others: Parameter) -> int:
        """What a call has left for slices beside its block and the others."""
        if self.enclave.shared_bytes is None:
            return sys.maxsize
        return self.enclave.shared_bytes - _PAGE_BYTES - sum(_pages(other.size) for other in others)

    def stats(self) -> EnclaveStats:
        """What the enclave measured; the last known if it does not tell any more."""
        with contextlib.suppress(EnclaveError):
            self._stats = self.enclave.stats()
        return self._stats

    def close(self) -> None:
        """End the enclave, keeping what it measured."""
        self.stats()
        self.enclave.close()


class _Windows:
    """Which run of sealed slices the enclave is shown."""

    def __init__(self, bundle: Bundle, window_bytes: int | None) -> None:
        self._start = bundle.slices.offset
        self._sizes = sealed_slice_bytes(bundle.manifest)
        self._resident = [piece.resident for piece in bundle.manifest.slices]
        self._limit_bytes = bundle.slices.n_bytes if window_bytes is None else window_bytes

    @property
    def largest_bytes(self) -> int:
        """Sealed bytes of the largest slice."""
        return max(self._sizes, default=0)

    def resident(self, room_bytes: int) -> Iterator[tuple[int, int, Parameter]]:
        """(first slice, number of slices, where they lie) of windows over all slices that stay and no others."""
        first = 0
        for stay, run in itertools.groupby(self._resident):
            end = first + len(list(run))
            while stay and first < end:
                count, window = self.at(first, room_bytes, end)
                yield first, count, window
                first += count
            first = end

    def at(self, first: int, room_bytes: int, end: int | None = None) -> tuple[int, Parameter]:
        """(number of slices, where they lie) of the window from a slice on, before `end`, that the room holds."""
        count, size = 0, 0
        limit_bytes = min(self._limit_bytes, room_bytes // _PAGE_BYTES * _PAGE_BYTES)
        for n_bytes in self._sizes[first:end]:
            if count and size + n_bytes > limit_bytes:
                break
            count, size = count + 1, size + n_bytes
        return count, Parameter(Kind.INPUT, Region.STORE, self._start + sum(self._sizes[:first]), size)


def _pages(n_bytes: int) -> int:
    """Bytes of whole pages."""
    return -(-n_bytes // _PAGE_BYTES) * _PAGE_BYTES


def _align(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


# --- The outside -------------------------------------------------------------------------------------------------


def _open_outside(bundle: Bundle) -> OutsideProgram | None:
    parts = {part.kind: index for index, part in enumerate(bundle.manifest.parts) if part.kind != "torch"}
    if not parts:
        return None
    from cloister.enclave.core import OutsideProgram  # needs the core library, a model that is all inside does not

    return OutsideProgram(bundle.part(parts["program"]), bundle.part(parts["constants"]))


def _open_torch(bundle: Bundle) -> list[TorchStage]:
    parts = [index for index, part in enumerate(bundle.manifest.parts) if part.kind == "torch"]
    if not parts:
        return []
    from cloister.enclave.torch_stage import TorchStage  # imports torch: seconds, and not on every device

    return [TorchStage(bundle.part(index), f"{bundle.path}: outside part {index}") for index in parts]


def _check_results(
    step: Step, results: Sequence[npt.NDArray[np.generic]], outputs: Sequence[Tensor], n_images: int
) -> dict[str, _Rows]:
    """The results of an exported program as rows; a wrong one is refused before it is looked at as bytes."""
    expected = [(np.dtype(tensor.dtype), (n_images, *tensor.shape)) for tensor in outputs]
    got = [(result.dtype, result.shape) for result in results]
    if got != expected:
        raise BundleError(f"expected {expected} from torch stage {step.index}, but got {got}")
    return {tensor.name: _to_rows(result, tensor) for tensor, result in zip(outputs, results, strict=True)}


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


def _to_rows(images: npt.NDArray[np.generic], tensor: Tensor) -> _Rows:
    """(N, *shape) as (N, n_bytes) in memory order."""
    if len(tensor.shape) == 3:
        images = images.transpose(0, 2, 3, 1)  # (N, H, W, C)
    return np.ascontiguousarray(images).view(np.uint8).reshape(len(images), tensor.n_bytes)


def _from_rows(rows: _Rows, tensor: Tensor) -> npt.NDArray[np.generic]:
    """(N, n_bytes) in memory order as (N, *shape)."""
    values = np.ascontiguousarray(rows).reshape(-1).view(tensor.dtype)
    if len(tensor.shape) == 3:
        return values.reshape(-1, *tensor.hwc).transpose(0, 3, 1, 2)
    return values.reshape(-1, *tensor.shape)
