"""An enclave behind a byte stream: `cloister-host` and the trusted application behind it.

Format: `docs/spec/wire.md`, "Over a byte stream".
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import time
import weakref
from collections.abc import Callable, Sequence
from typing import BinaryIO, NamedTuple

from cloister import __version__
from cloister.boards import load_boards
from cloister.enclave import wire
from cloister.enclave.client import CONTROL_BYTES, Enclave
from cloister.enclave.wire import Command, Kind, Parameter, Region
from cloister.errors import (
    CloisterError,
    EnclaveBusy,
    EnclaveCrashed,
    EnclaveError,
    EnclaveOutOfMemory,
    EnclaveUnavailable,
    ProtocolError,
)

__all__ = ["Link", "StreamEnclave"]

_STREAM_VERSION = 1
_CHUNK_BYTES = 1 << 16
_STORE_PIECE_BYTES = 1 << 20
_NONCE_BYTES = 16
_HELLO = struct.Struct("<4sI16s8x")
_HELLO_ANSWER = struct.Struct("<4sI16sIIQ8x")
#: How long to wait for the answer to a hello before it is said again.
_PATIENCE_SECONDS = 5.0
_TRIES = 6


class Link(NamedTuple):
    """A way to `cloister-host`.

    Attributes:
        stream: a connected stream socket.
        process_id: the process on this machine that stands for the enclave, or None.
        close: gives back what the link took, and tells how the other end ended, empty if nothing is known.
        hint: what to do when the enclave is gone.
        install_hint: what to do when the trusted application is refused, missing, or of another version.
    """

    stream: socket.socket
    process_id: int | None
    close: Callable[[], str]
    hint: str
    install_hint: str


class StreamEnclave(Enclave):
    """A trusted application in OP-TEE, on a board or in the emulator. The session ends with the link."""

    def __init__(
        self,
        link: Link,
        store: BinaryIO | None = None,
        *,
        store_range: tuple[int, int] = (0, 0),
        payload_bytes: int = 0,
    ) -> None:
        """Open a session and ask who is there.

        Args:
            link: the way; closed with the session, also if this fails.
            store: an open file, the bundle.
            store_range: (offset, bytes) of what the enclave may need of it; sent before anything else.
            payload_bytes: memory for images and results.

        Raises:
            EnclaveError: nobody answers, or the trusted application cannot be used.
        """
        self._link = link
        self._payload = mmap.mmap(-1, CONTROL_BYTES + payload_bytes)
        self._end = weakref.finalize(self, _end, link)
        self._sequence = 0
        self._store_base = store_range[0]
        try:
            shared_bytes = _greet(link, self._end)
            self.info = wire.unpack_info(self._answer(Command.INFO, wire.INFO_BYTES))
            board = load_boards().get(self.info.board)
            self.shared_bytes = min(shared_bytes, board.shared_bytes) if board else shared_bytes
            self._check_version()
            if store is not None:
                self._send_store(store, *store_range)
        except BaseException:
            self.close()
            raise

    def _check_version(self) -> None:
        expected = f"cloister {__version__}"
        if self.info.version != expected:
            raise EnclaveUnavailable(
                f"expected the trusted application of {expected}, but found the one of {self.info.version}",
                self._link.install_hint,
            )

    def _send_store(self, store: BinaryIO, offset: int, n_bytes: int) -> None:
        """In pieces, so that neither side needs all of it twice."""
        for start in range(0, n_bytes, _STORE_PIECE_BYTES):
            size = min(_STORE_PIECE_BYTES, n_bytes - start)
            piece = os.pread(store.fileno(), size, offset + start)
            if len(piece) != size:
                raise EnclaveError("the bundle was cut short while it was read")
            self._request(Command.STORE, [Parameter(Kind.INPUT, Region.STORE, start, size)], [piece])

    @property
    def process_id(self) -> int | None:
        """See `Enclave.process_id`."""
        return self._link.process_id

    def call(self, command: Command, parameters: Sequence[Parameter]) -> tuple[int, ...]:
        """See `Enclave.call`."""
        memory = memoryview(self.payload)
        inputs = [memory[p.offset : p.offset + p.size] for p in parameters if _travels(p, Kind.INPUT)]
        moved = [p._replace(offset=p.offset - self._store_base) if p.region is Region.STORE else p for p in parameters]
        sizes = self._request(command, moved, inputs)
        for parameter, size in zip(parameters, sizes, strict=False):
            if _travels(parameter, Kind.OUTPUT):
                self._receive_into(memory[parameter.offset : parameter.offset + size], command)
        return sizes

    def _request(
        self, command: Command, parameters: Sequence[Parameter], inputs: Sequence[bytes | memoryview]
    ) -> tuple[int, ...]:
        """Send a request with what travels along; receive the response, but not yet what follows it."""
        self._require_open()
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        self._send(wire.pack_request(self._sequence, command, parameters), command)
        for data in inputs:
            self._send(data, command)
        frame = bytearray(wire.RESPONSE_BYTES)
        self._receive_into(memoryview(frame), command)
        try:
            result, sizes = wire.unpack_response(bytes(frame), self._sequence, parameters)
        except ProtocolError:
            self.close()  # which bytes belong to which response is unknown from here on
            raise
        wire.check_result(result, command)
        return sizes

    def _send(self, data: bytes | memoryview, command: Command) -> None:
        try:
            for start in range(0, len(data), _CHUNK_BYTES):
                piece = data[start : start + _CHUNK_BYTES]
                self._link.stream.sendall(struct.pack("<4sI", b"CLCK", len(piece)), socket.MSG_NOSIGNAL)
                self._link.stream.sendall(piece, socket.MSG_NOSIGNAL)
        except OSError as error:
            raise self._gone(command) from error

    def _receive_into(self, memory: memoryview, command: Command) -> None:
        done = 0
        try:
            while done < len(memory):
                got = self._link.stream.recv_into(memory[done:])
                if got == 0:
                    raise self._gone(command)
                done += got
        except OSError as error:
            raise self._gone(command) from error

    def _gone(self, command: Command) -> EnclaveCrashed:
        how = self._end()
        self.close()
        message = f"the enclave was gone during `{command.name.lower()}`" + (f": {how}" if how else "")
        return EnclaveCrashed(message, self._link.hint)


def _end(link: Link) -> str:
    link.stream.close()
    return link.close()


def _travels(parameter: Parameter, kind: Kind) -> bool:
    """Whether a parameter's bytes go along, in the direction of `kind`."""
    return parameter.region is Region.PAYLOAD and parameter.kind in (kind, Kind.BOTH)


# --- Hello -------------------------------------------------------------------------------------------------------


def _greet(link: Link, end: Callable[[], str | None]) -> int:
    """Open the session; `end` closes the link and tells how its other end ended.

    Returns:
        The shared bytes.
    """
    try:
        for attempt in range(_TRIES):
            nonce = os.urandom(_NONCE_BYTES)
            # Zeros get it through whatever an earlier client left unfinished.
            filler = bytes(_CHUNK_BYTES + 8) if attempt else b""
            link.stream.sendall(filler + _HELLO.pack(b"CLHI", _STREAM_VERSION, nonce), socket.MSG_NOSIGNAL)
            answer = _await_answer(link.stream, nonce)
            if answer is not None:
                return _check_answer(answer, link)
    except OSError as error:
        how = end() or error.strerror
        raise EnclaveUnavailable(f"the way to the enclave is broken: {how}", link.hint) from error
    raise EnclaveUnavailable(
        f"expected an answer from cloister-host within {_TRIES * _PATIENCE_SECONDS:.0f} s: it does not run, or the "
        "trusted application is busy with a long call of another client",
        link.hint,
    )


def _await_answer(stream: socket.socket, nonce: bytes) -> bytes | None:
    """The answer that holds the nonce, skipping what comes before it; None if it does not come in time."""
    mark = b"CLHO" + struct.pack("<I", _STREAM_VERSION) + nonce
    seen = b""
    end = time.monotonic() + _PATIENCE_SECONDS
    try:
        while (left := end - time.monotonic()) > 0:
            stream.settimeout(left)
            piece = stream.recv(_CHUNK_BYTES)
            if not piece:
                raise ConnectionResetError(0, "it was closed")
            seen += piece
            start = seen.find(mark)
            if start >= 0 and len(seen) - start >= _HELLO_ANSWER.size:
                return seen[start : start + _HELLO_ANSWER.size]
            seen = seen[start:] if start >= 0 else seen[-len(mark) :]
    except TimeoutError:
        return None
    finally:
        stream.settimeout(None)
    return None


_OPEN_RESULTS: dict[int, tuple[type[CloisterError], str]] = {
    0xFFFF0008: (EnclaveUnavailable, "the trusted application is not installed there"),
    0xFFFF000F: (EnclaveUnavailable, "the signature of the trusted application is not one that this OP-TEE knows"),
    0xFFFF000C: (EnclaveOutOfMemory, "OP-TEE has no memory left for the trusted application's heap"),
    0xFFFF000D: (EnclaveBusy, "the trusted application serves as many sessions as it can"),
    0xFFFF000E: (EnclaveUnavailable, "there is no OP-TEE, or no tee-supplicant runs"),
    0xFFFF3024: (EnclaveUnavailable, "the trusted application ended while it was opened"),
}


def _check_answer(answer: bytes, link: Link) -> int:
    _, _, _, result, origin, shared_bytes = _HELLO_ANSWER.unpack(answer)
    if result == 0:
        return int(shared_bytes)
    error, meaning = _OPEN_RESULTS.get(result, (EnclaveUnavailable, "no session with the trusted application"))
    raise error(f"{meaning} (0x{result:08X}, origin {origin})", link.install_hint)
