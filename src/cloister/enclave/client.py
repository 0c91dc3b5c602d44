"""A client's side of an enclave: the commands, whatever carries them."""

from __future__ import annotations

import abc
import contextlib
import functools
import mmap
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from cloister.enclave import wire
from cloister.enclave.wire import Command, EnclaveInfo, EnclaveStats, Kind, Parameter, Region
from cloister.errors import EnclaveError, ProtocolError

__all__ = ["CONTROL_BYTES", "Enclave"]

#: Start of the payload memory that is kept for the commands' own blocks; images and results lie behind it.
CONTROL_BYTES = 256
_BLOCK = Parameter(Kind.OUTPUT, Region.PAYLOAD, 0, 0)


class Enclave(abc.ABC):
    """A session with an enclave.

    Not thread-safe: one call at a time. A context manager; the session ends with it.

    Attributes:
        info: what the enclave says of itself.
        shared_bytes: what the parameters of one call may have together, each rounded up to 4096; None for no limit.
    """

    info: EnclaveInfo
    shared_bytes: int | None = None

    _payload: mmap.mmap
    #: Ends what carries the session; set by each kind of enclave, alive while the session is.
    _end: weakref.finalize[..., Enclave]

    @property
    def payload(self) -> mmap.mmap:
        """Memory for images and results; its first `CONTROL_BYTES` are for the commands' own blocks.

        Raises:
            EnclaveError: the enclave is closed.
        """
        self._require_open()
        return self._payload

    def _require_open(self) -> None:
        if not self._end.alive:
            raise EnclaveError("the enclave is closed", "load the bundle again")

    @property
    @abc.abstractmethod
    def process_id(self) -> int | None:
        """The process on this machine that stands for the enclave, or None if there is none of its own."""

    @abc.abstractmethod
    def call(self, command: Command, parameters: Sequence[Parameter]) -> tuple[int, ...]:
        """One request and its response.

        Returns:
            The bytes used of each of the four parameters.

        Raises:
            EnclaveError, IntegrityError: the enclave refuses, answers nonsense, or is gone.
        """

    def prepare(self, command: Command, parameters: Sequence[Parameter]) -> Callable[[], object]:
        """Make `call` for a request that is made often; what it returns is of no use."""
        return functools.partial(self.call, command, parameters)

    def close(self) -> None:
        """End the session. May be called again."""
        self._end()
        with contextlib.suppress(BufferError):  # an array still looks into it: it goes away with that array
            self._payload.close()

    def load(self, load_block: bytes, sealed_program: tuple[int, int]) -> wire.Loaded:
        """Open the content key and the program.

        Args:
            load_block: made by `wire.pack_load`.
            sealed_program: (offset, bytes) in the store.

        Raises:
            IntegrityError: it does not open.
            EnclaveOutOfMemory: it does not fit.
        """
        self.payload[: wire.LOAD_BYTES] = load_block
        parameters = [
            Parameter(Kind.INPUT, Region.PAYLOAD, 0, wire.LOAD_BYTES),
            Parameter(Kind.INPUT, Region.STORE, *sealed_program),
            Parameter(Kind.OUTPUT, Region.PAYLOAD, wire.LOAD_BYTES, wire.LOADED_BYTES),
        ]
        self.call(Command.LOAD, parameters)
        return wire.unpack_loaded(self.payload[wire.LOAD_BYTES : wire.LOAD_BYTES + wire.LOADED_BYTES])

    def prepare_run(
        self, run_block: bytes, images: Parameter, results: Parameter, window: Parameter
    ) -> Callable[[], wire.RunState | None]:
        """Make a call that runs a stage, or goes on with it.

        Args:
            run_block: made by `wire.pack_run`.
            images: where the images are.
            results: where the results go.
            window: where the sealed slices are that it may open.

        Returns:
            What tells how far the run came, or None if it is done; raises EnclaveError or IntegrityError if it fails.
        """
        parameter = Parameter(Kind.BOTH, Region.PAYLOAD, 0, wire.RUN_BYTES)
        call = self.prepare(Command.RUN, [parameter, images, results, window])
        block = memoryview(self.payload)[: wire.RUN_BYTES]

        def run() -> wire.RunState | None:
            block[:] = run_block
            call()
            return wire.unpack_run(block)

        return run

    def open_slices(self, first: int, count: int, window: Parameter) -> None:
        """Open slices ahead of the first run.

        Args:
            first: index of the first of them.
            count: how many.
            window: where they lie, sealed.

        Raises:
            EnclaveError, IntegrityError: it fails.
        """
        self.payload[: wire.OPEN_BYTES] = wire.pack_open(first, count)
        self.call(Command.OPEN, [Parameter(Kind.INPUT, Region.PAYLOAD, 0, wire.OPEN_BYTES), window])

    def stats(self) -> EnclaveStats:
        """What the enclave measured since it was started."""
        return wire.unpack_stats(self._answer(Command.STATS, wire.STATS_BYTES))

    def _answer(self, command: Command, n_bytes: int) -> bytes:
        """Ask for a block of the enclave's own."""
        sizes = self.call(command, [_BLOCK._replace(size=n_bytes)])
        if sizes[0] != n_bytes:
            raise ProtocolError(f"expected {n_bytes} bytes of {command.name.lower()}, but got {sizes[0]}")
        return self.payload[:n_bytes]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
