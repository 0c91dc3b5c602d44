"""Instructions that a model takes outside and inside, counted in the emulator: the same on every machine.

A counting emulator (`cloister.emulator.up(counting=True)`) executes one instruction in each nanosecond of the guest's
clock. `cloister-host` reads that clock in the normal world around each call; what a part takes follows from calls
that do that part alone:

- crossing: the calls of a run again, but with a stage that does not exist: refused before anything is done;
- unsealing: `open` of the slices that stream, without its crossing;
- compute: what is left of the run.
"""

from __future__ import annotations

import contextlib
import functools
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from cloister import emulator
from cloister.bundle.file import Bundle, read_bundle
from cloister.bundle.keys import format_public_key
from cloister.emulator.cache import locked
from cloister.enclave.client import CONTROL_BYTES, Enclave
from cloister.enclave.core import OutsideProgram
from cloister.enclave.local import memory_file
from cloister.enclave.session import Session
from cloister.enclave.stream import Link, StreamEnclave
from cloister.enclave.wire import Command, EnclaveInfo, Kind, Parameter, Region
from cloister.errors import PlanError, ProtocolError
from cloister.layers import layer_table
from cloister.progress import Progress
from cloister.protection import lower_target, protect_lowered
from cloister.target import load_target

__all__ = ["CountDocument", "CountRow", "Missing", "count_instructions"]

_CLOCK = struct.Struct("<QQ")
#: Where the clock's answer goes: the end of the payload's control block, out of the way of what is counted.
_CLOCK_AT = CONTROL_BYTES - _CLOCK.size
_NOWHERE = 0xFFFFFFFF
#: Calls that are made again to see what crossing takes.
_AGAIN = (Command.RUN, Command.OPEN)
#: Instructions in a second of the guest's clock.
_RATE = 1_000_000_000
#: Room for images and results of an outside stage.
_PAYLOAD_BYTES = 8 << 20
_IMAGE_SHAPE, _N_CLASSES = (3, 32, 32), 10


class CountRow(msgspec.Struct, frozen=True, kw_only=True):
    """One model in one place.

    Attributes:
        model: a model of the zoo.
        inside: which layers are inside: `none`: all of it runs in the guest's normal world; `all`; `last:K`.
        budget_bytes: inside memory that was allowed; None outside.
        inside_bytes: inside memory that was taken.
        n_slices: slices of the program.
        streamed_bytes: bytes that are opened for a group of images.
        images: images in the call that was counted; a whole group of lanes.
        calls: crossings into the trusted application.
        instructions: for one image, all of it.
        crossing: of these, for going in and out.
        unsealing: of these, for opening slices.
        compute: the rest.
        unsealing_per_byte: instructions for a byte opened; None if nothing streams.
        compute_per_multiply_add: of `compute`.
        against_outside: `instructions` / those of the same model with nothing inside.
        spread: (largest - smallest) / median of the repeated counts of all of it.
    """

    model: str
    inside: str
    budget_bytes: int | None
    inside_bytes: int
    n_slices: int
    streamed_bytes: int
    images: int
    calls: int
    instructions: float
    crossing: float
    unsealing: float
    compute: float
    unsealing_per_byte: float | None
    compute_per_multiply_add: float
    against_outside: float
    spread: float


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """What could not be counted.

    Attributes:
        model: a model of the zoo.
        budget_bytes: inside memory that was allowed, None for all that the board has.
        reason: why it does not work.
    """

    model: str
    budget_bytes: int | None
    reason: str


class CountDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `cloister bench --count instructions` found.

    Attributes:
        schema: name and version of this document.
        enclave: where it was counted.
        board: the trusted application's board.
        march: instruction set of the kernels, as gcc's `-march` takes it.
        isolation: what keeps the rest of the machine out, in words.
        repeats: counts of which each number is the median.
        rows: the counts.
        missing: what could not be counted.
    """

    schema: Literal["cloister.counts/1"] = "cloister.counts/1"
    enclave: str
    board: str
    march: str
    isolation: str
    repeats: int
    rows: tuple[CountRow, ...]
    missing: tuple[Missing, ...]


def count_instructions(
    models: Sequence[str],
    *,
    budgets: Sequence[int | None] = (None, 1 << 20, 256 << 10),
    repeats: int = 5,
    progress: Progress | None = None,
) -> CountDocument:
    """Count int8 models of the zoo with random weights, for images of 3x32x32: values do not change the counts.

    Brings a counting emulator up, and ends it.

    Args:
        models: names in the zoo.
        budgets: inside memory for everything inside; None for all that the board has.
        repeats: counts to take the median of.
        progress: told how far it is, or None.

    Raises:
        UserError: there is no such model.
        EnclaveError: the emulator does not start, or fails.
    """
    rows: list[CountRow] = []
    missing: list[Missing] = []
    with _counting_machine(progress):
        with StreamEnclave(_open_link()) as enclave:
            info = enclave.info
        for done, model in enumerate(models):
            if progress:
                progress.update(done, len(models), f"counting {model}")
            _count_model(_Case(model, info), budgets, repeats, rows, missing)
    return CountDocument(
        enclave="emulator",
        board=info.board,
        march=emulator.instance(counting=True).machine.profile.march,
        isolation=info.isolation,
        repeats=repeats,
        rows=tuple(rows),
        missing=tuple(missing),
    )


@contextlib.contextmanager
def _counting_machine(progress: Progress | None) -> Iterator[None]:
    """The emulator for this process alone: another client's calls would be counted, too."""

    def waiting(text: str) -> None:
        if progress:
            progress.update(0, 1, text)

    machine = emulator.instance(counting=True)
    machine.make_folder()
    with locked(machine.folder / "bench.lock", waiting):
        emulator.up(counting=True, progress=progress)
        try:
            yield
        finally:
            emulator.down(counting=True)


def _open_link() -> Link:
    return emulator.connect(counting=True)


class _Case:
    """A model of the zoo, made into one bundle after the other."""

    def __init__(self, model: str, info: EnclaveInfo) -> None:
        target = load_target(f"zoo:{model}", input_shape=_IMAGE_SHAPE, n_classes=_N_CLASSES)
        self.model = model
        self.info = info
        self.lowered = lower_target(target, calibration=_images(64))
        self.multiply_adds = sum(layer.multiply_adds for layer in layer_table(self.lowered.graph))

    def write(self, folder: Path, inside: str, budget_bytes: int | None) -> Path:
        """The bundle.

        Raises:
            PlanError: it does not fit.
        """
        device = folder / "emulator.pub"
        device.write_text(format_public_key(self.info.public_key))
        path = folder / "model.cloister"
        protect_lowered(
            self.lowered,
            path,
            inside=inside,
            board=self.info.board,
            budget_bytes=budget_bytes,
            devices=[str(device)],
            force=True,
        )
        return path


def _count_model(
    case: _Case, budgets: Sequence[int | None], repeats: int, rows: list[CountRow], missing: list[Missing]
) -> None:
    """Everything outside, then inside at each budget, for one image and for a group of lanes.

    Where everything inside does not stay open on the board, also the most last layers that do.
    """
    outside = None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        partly = [] if (most := _most_that_stay(case, folder)) == "all" else [(most, None)]
        for inside, budget in [("none", None), *partly, *(("all", budget) for budget in budgets)]:
            try:
                path = case.write(folder, inside, budget)
            except PlanError as error:
                missing.append(Missing(model=case.model, budget_bytes=budget, reason=str(error)))
                continue
            with _CountingSession(read_bundle(path)) as session:
                for n_images in sorted({1, session.bundle.manifest.plan.lanes}):
                    row = _row(case, session, n_images, repeats, outside)
                    outside = outside or row
                    rows.append(row)


def _most_that_stay(case: _Case, folder: Path) -> str:
    """`all`, or the most last layers, of which no slice streams with all the memory that the board has."""
    n_layers = len(list(case.lowered.graph.layers()))
    for inside in ("all", *(f"last:{k}" for k in range(n_layers - 1, 1, -1))):
        with read_bundle(case.write(folder, inside, None)) as bundle:
            if all(piece.resident for piece in bundle.manifest.slices):
                return inside
    return "last:1"


def _images(n: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-1, 1, (n, *_IMAGE_SHAPE)).astype(np.float32)


def _row(case: _Case, session: _CountingSession, n_images: int, repeats: int, outside: CountRow | None) -> CountRow:
    manifest = session.bundle.manifest
    plan = manifest.plan
    streamed_bytes = sum(piece.n_bytes for piece in manifest.slices if not piece.resident)
    counts = session.count(_images(n_images), repeats)
    total = median(counts.totals)
    compute = (total - counts.crossing - counts.unsealing) / n_images
    return CountRow(
        model=case.model,
        inside=plan.inside,
        budget_bytes=plan.budget_bytes,
        inside_bytes=plan.inside_bytes,
        n_slices=len(manifest.slices),
        streamed_bytes=streamed_bytes,
        images=n_images,
        calls=counts.calls,
        instructions=total / n_images,
        crossing=counts.crossing / n_images,
        unsealing=counts.unsealing / n_images,
        compute=compute,
        unsealing_per_byte=counts.unsealing / streamed_bytes if streamed_bytes else None,
        compute_per_multiply_add=compute / case.multiply_adds,
        against_outside=total / n_images / outside.instructions if outside else 1.0,
        spread=(max(counts.totals) - min(counts.totals)) / total,
    )


# --- Counting ------------------------------------------------------------------------------------------------------


class _Counts(NamedTuple):
    """Instructions of one call of a session.

    Attributes:
        totals: of all steps, for each repeat.
        crossing: of these, for going in and out.
        unsealing: of these, for opening slices.
        calls: crossings.
    """

    totals: list[float]
    crossing: float
    unsealing: float
    calls: int


class _Call(NamedTuple):
    """A call that was made: what is needed to make it again."""

    command: Command
    parameters: tuple[Parameter, ...]
    block: bytes
    instructions: float


class _CountingEnclave(StreamEnclave):
    """A session that counts its calls; `made` are those since it was last emptied."""

    @functools.cached_property
    def made(self) -> list[_Call]:
        """Empty at first; there already for the calls that opening the session makes."""
        return []

    def call(self, command: Command, parameters: Sequence[Parameter]) -> tuple[int, ...]:
        """See `Enclave.call`."""
        first = parameters[0]
        block = bytes(self.payload[first.offset : first.offset + first.size]) if command in _AGAIN else b""
        sizes = super().call(command, parameters)
        self.made.append(_Call(command, tuple(parameters), block, self._instructions()))
        return sizes

    def settle(self) -> None:
        """From here on the same timer interrupts fall into a call, whenever it is made."""
        super().call(Command.SETTLE, [])

    def _instructions(self) -> float:
        """Of the last call."""
        super().call(Command.CLOCK, [Parameter(Kind.OUTPUT, Region.PAYLOAD, _CLOCK_AT, _CLOCK.size)])
        ticks, ticks_per_second = _CLOCK.unpack_from(self.payload, _CLOCK_AT)
        return float(ticks * _RATE / ticks_per_second)

    def crossing(self, made: _Call) -> float:
        """Instructions of a call that is refused before anything is done: its first word names nothing."""
        first = made.parameters[0]
        block = struct.pack("<I", _NOWHERE) + made.block[4:]
        self.payload[first.offset : first.offset + first.size] = block
        with contextlib.suppress(ProtocolError):
            super().call(made.command, made.parameters)
            raise AssertionError(f"`{made.command.name.lower()}` of {_NOWHERE} was not refused")
        return self._instructions()


class _GuestOutside(OutsideProgram):
    """An outside program that runs in the guest's normal world.

    Attributes:
        enclave: the way to the guest.
    """

    def __init__(self, program: bytes, constants: bytes | memoryview) -> None:
        super().__init__(program, constants)
        n_bytes = len(program) + len(constants)
        with memory_file("cloister-outside", 0) as file:
            file.write(program)
            file.write(constants)
            self.enclave = _CountingEnclave(_open_link(), file, store_range=(0, n_bytes), payload_bytes=_PAYLOAD_BYTES)
        parts = [(0, len(program)), (len(program), len(constants))]
        self.enclave.call(Command.OUTSIDE_LOAD, [Parameter(Kind.INPUT, Region.STORE, *part) for part in parts])

    def prepare(self, stage: int, payload: npt.NDArray[np.uint8], result: npt.NDArray[np.uint8]) -> Callable[[], None]:
        """See `OutsideProgram.prepare`."""
        block = struct.pack("<II", stage, len(payload))
        start, end = CONTROL_BYTES, CONTROL_BYTES + payload.size
        parameters = [
            Parameter(Kind.INPUT, Region.PAYLOAD, 0, len(block)),
            Parameter(Kind.INPUT, Region.PAYLOAD, start, payload.size),
            Parameter(Kind.OUTPUT, Region.PAYLOAD, end, result.size),
        ]

        def run() -> None:
            memory = self.enclave.payload
            memory[: len(block)] = block
            memory[start:end] = payload.tobytes()
            self.enclave.call(Command.OUTSIDE_RUN, parameters)
            result.reshape(-1)[:] = np.frombuffer(memory[end : end + result.size], np.uint8)

        return run


class _CountingSession(Session):
    """A session with both worlds in the guest."""

    def __init__(self, bundle: Bundle) -> None:
        self._counting: list[_CountingEnclave] = []
        super().__init__(bundle, enclave="emulator")

    def _open_outside(self, program: bytes, constants: bytes | memoryview) -> OutsideProgram:
        outside = _GuestOutside(program, constants)
        self._counting.append(outside.enclave)
        return outside

    def _connect(self, enclave: str, payload_bytes: int) -> Enclave:
        inside = _CountingEnclave(
            _open_link(), self.bundle.file, store_range=self._store_range(), payload_bytes=payload_bytes
        )
        self._counting.append(inside)
        return inside

    def count(self, images: npt.NDArray[np.float32], repeats: int) -> _Counts:
        """Count a run.

        Args:
            images: (N, C, H, W) float32; they travel together.
            repeats: how often.
        """
        for counter in self._counting:
            counter.settle()
        totals = []
        for _ in range(1 + repeats):
            for counter in self._counting:
                counter.made.clear()
            self.run(images)
            totals.append(sum(made.instructions for counter in self._counting for made in counter.made))
        runs = [(counter, made) for counter in self._counting for made in counter.made if made.command is Command.RUN]
        crossing = sum(median(counter.crossing(made) for _ in range(repeats)) for counter, made in runs)
        unsealing = median(self._count_unsealing() for _ in range(repeats))
        return _Counts(totals[1:], crossing, unsealing, len(runs))

    def _count_unsealing(self) -> float:
        """Instructions of opening all slices that stream, once."""
        if self._inside is None:
            return 0.0
        inside, counter = self._inside, self._counting[-1]
        counter.made.clear()
        for first, count, window in inside.windows.over(inside.room_bytes(), resident=False):
            counter.open_slices(first, count, window)
        return sum(made.instructions - counter.crossing(made) for made in counter.made)

    def close(self) -> None:
        """See `Session.close`."""
        super().close()
        for counter in self._counting:
            counter.close()
