"""What `cloister-host` does, in Python, with the local enclave behind it: the other end of a byte stream.

For tests of the client. `behave` changes what it answers.
"""

from __future__ import annotations

import os
import socket
import struct
import tempfile
import threading
from collections.abc import Callable

import numpy as np

from cloister.enclave import wire
from cloister.enclave.client import CONTROL_BYTES
from cloister.enclave.core import OutsideProgram
from cloister.enclave.local import LocalEnclave
from cloister.enclave.stream import Link
from cloister.enclave.wire import Command, Kind, Parameter, Region
from cloister.errors import BundleError, EnclaveError, EnclaveOutOfMemory, NotForThisDevice, ProtocolError

PAGE = 4096
CLOCK_RATE = 62_500_000
_RESULTS = {
    NotForThisDevice: 0xFFFF0001,
    BundleError: 0xFFFF3071,
    EnclaveOutOfMemory: 0xFFFF000C,
    ProtocolError: 0xFFFF0006,
}


class Bridge:
    """One client's host, in a thread.

    Attributes:
        hello: (result, origin) of opening a session.
        calls: commands in order.
        ticks: what the clock says that a command took, by command and whether it was refused.
        largest_call_bytes: the most that a call's parameters had, in whole pages.
    """

    def __init__(
        self,
        *,
        shared_bytes: int = 1 << 22,
        heap_bytes: int = 1 << 23,
        before: bytes = b"",
        ticks: Callable[[int, bool], int] = lambda command, refused: 0,
    ) -> None:
        self.shared_bytes, self.heap_bytes, self.ticks = shared_bytes, heap_bytes, ticks
        self._last_ticks = 0
        self._outside: OutsideProgram | None = None
        self.hello = (0, 0)
        self.calls: list[int] = []
        self.largest_call_bytes = 0
        self.closed = 0
        self.skip_hellos = 0
        self.version: bytes | None = None
        self.behave: Callable[[int, bytes], bytes] = lambda command, answer: answer
        self._store = bytearray()
        self._enclave: LocalEnclave | None = None
        ours, self._theirs = socket.socketpair()
        self._theirs.sendall(before)
        self._buffer = b""
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self.link = Link(ours, None, self._close, "start it again", "install it again")

    def _close(self) -> str:
        self.closed += 1
        return "its last words"

    def _take(self, n: int) -> bytes:
        while len(self._buffer) < n:
            piece = self._theirs.recv(1 << 16)
            if not piece:
                raise EOFError
            self._buffer += piece
        data, self._buffer = self._buffer[:n], self._buffer[n:]
        return data

    def _contents(self, n: int) -> bytes:
        """The next n bytes of chunks' contents; raises KeyError at a hello."""
        while len(self._inner) < n:
            head = self._take(4)
            while head not in (b"CLCK", b"CLHI"):
                head = head[1:] + self._take(1)
            if head == b"CLHI":
                raise KeyError
            (size,) = struct.unpack("<I", self._take(4))
            assert 1 <= size <= 65536
            self._inner += self._take(size)
        data, self._inner = self._inner[:n], self._inner[n:]
        return data

    def _serve(self) -> None:
        self._inner = b""
        try:
            while True:
                try:
                    self._answer(self._contents(wire.REQUEST_BYTES))
                except KeyError:
                    self._inner = b""
                    self._greet(self._take(28))
        except (EOFError, OSError):
            pass
        finally:
            self._theirs.close()
            if self._enclave:
                self._enclave.close()

    def _greet(self, rest: bytes) -> None:
        version, nonce = struct.unpack("<I16s8x", rest)
        if self.skip_hellos:
            self.skip_hellos -= 1
            return
        self._store.clear()
        if self.hello[0] == 0:
            with tempfile.TemporaryFile() as file:
                file.write(bytes(64))
                file.flush()
                self._enclave = LocalEnclave(file, payload_bytes=1 << 24, heap_bytes=self.heap_bytes)
        self._theirs.sendall(struct.pack("<4sI16sIIQ8x", b"CLHO", version, nonce, *self.hello, self.shared_bytes))

    def _answer(self, frame: bytes) -> None:
        magic, sequence, command, zero = struct.unpack_from("<4sIII", frame)
        assert (magic, zero) == (b"CLRQ", 0)
        self.calls.append(command)
        given = [Parameter(*struct.unpack_from("<IIQQ", frame, 16 + 24 * i)) for i in range(4)]
        travels = command == Command.STORE
        inputs = {
            i: self._contents(p.size)
            for i, p in enumerate(given)
            if p.kind in (Kind.INPUT, Kind.BOTH) and (travels or p.region == Region.PAYLOAD)
        }
        result, sizes, outputs = 0, [0] * 4, b""
        if command == Command.STORE:
            offset = given[0].offset
            assert offset <= len(self._store)
            self._store[offset : offset + given[0].size] = inputs[0]
        elif command == Command.CLOCK:
            sizes, outputs = [16, 0, 0, 0], struct.pack("<QQ", self._last_ticks, CLOCK_RATE)
        elif command == Command.SETTLE:
            pass
        elif command in (Command.OUTSIDE_LOAD, Command.OUTSIDE_RUN):
            sizes, outputs = self._run_outside(command, given, inputs)
        else:
            result, sizes, outputs = self._forward(command, given, inputs)
        if command not in (Command.CLOCK, Command.SETTLE):
            self._last_ticks = self.ticks(command, result != 0)
        response = struct.pack("<4sIII4Q", b"CLRS", sequence, result, 0, *sizes) + outputs
        self._theirs.sendall(self.behave(command, response))

    def _forward(self, command, given, inputs):
        """The call, with everything in the local enclave's payload."""
        total = sum(-(-p.size // PAGE) * PAGE for p in given)
        self.largest_call_bytes = max(self.largest_call_bytes, total)
        if total > self.shared_bytes:
            return 0xFFFF0004, [0] * 4, b""
        memory, at, moved = self._enclave.payload, CONTROL_BYTES, []
        for i, p in enumerate(given):
            data = inputs.get(i, b"")
            if p.region == Region.STORE:
                data = bytes(self._store[p.offset : p.offset + p.size])
            if p.kind == Kind.NONE:
                moved.append(wire.NO_PARAMETER)
                continue
            memory[at : at + len(data)] = data
            moved.append(Parameter(Kind(p.kind), Region.PAYLOAD, at, p.size))
            at += -(-p.size // 64) * 64
        try:
            sizes = self._enclave.call(Command(command), moved)
        except EnclaveError as error:
            return _RESULTS.get(type(error), 0xFFFF0000), [0] * 4, b""
        except (BundleError, NotForThisDevice) as error:
            return _RESULTS[type(error)], [0] * 4, b""
        if command == Command.INFO and self.version is not None:
            memory[moved[0].offset + 56 : moved[0].offset + 120] = self.version.ljust(64, b"\0")
        outputs = b"".join(
            memory[p.offset : p.offset + size]
            for p, size in zip(moved, sizes, strict=True)
            if p.kind in (Kind.OUTPUT, Kind.BOTH)
        )
        return 0, list(sizes), outputs

    def _run_outside(self, command, given, inputs):
        if command == Command.OUTSIDE_LOAD:
            parts = [bytes(self._store[p.offset : p.offset + p.size]) for p in given[:2]]
            self._outside = OutsideProgram(*parts)
            return [0] * 4, b""
        stage, n_images = struct.unpack("<II", inputs[0])
        results = self._outside.run(stage, np.frombuffer(inputs[1], np.uint8).reshape(n_images, -1)).tobytes()
        assert len(results) == given[2].size
        return [len(inputs[0]), len(inputs[1]), len(results), 0], results

    def end(self) -> None:
        """Cut the stream, as a guest that dies does."""
        self._theirs.shutdown(socket.SHUT_RDWR)


def noise(n: int) -> bytes:
    """Bytes that an earlier client left."""
    return os.urandom(n)
