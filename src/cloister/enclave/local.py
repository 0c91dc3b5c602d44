"""The local enclave: the trusted application as a process of its own on this machine.

It isolates a process, not hardware: it keeps the inside from the client and from other users, not from root.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import importlib.resources
import mmap
import os
import signal
import socket
import subprocess
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

import numpy as np
import numpy.typing as npt

from cloister.enclave import wire
from cloister.enclave.client import CONTROL_BYTES, Enclave
from cloister.enclave.core import load_library, pointer
from cloister.enclave.instructions import allowed_sets
from cloister.enclave.wire import Command, EnclaveInfo, Parameter, Region
from cloister.errors import EnclaveCrashed, EnclaveUnavailable, ProtocolError, UserError

__all__ = [
    "MIN_HEAP_BYTES",
    "LocalEnclave",
    "binary_path",
    "end_process",
    "last_words",
    "local_info",
    "memory_file",
    "state_folder",
    "state_root",
]

#: The smallest heap that an enclave starts with.
MIN_HEAP_BYTES = 1 << 13
_SMALL_STORE_BYTES = 4096
_BELL_BYTES = 4096
_END_SECONDS = 5.0
_STDERR_BYTES = 4000
_HINT = "cloister-enclave: hint: "
#: `cl_peer` of `native/posix/client.h`, and its answer to a response that is no success.
_PEER = np.dtype(
    [
        ("bell", np.uint64),
        *((name, np.int32) for name in ("socket", "process", "place", "processor")),
        *((name, np.uint32) for name in ("sequence", "sent", "received")),
        *((name, np.bool_) for name in ("looks", "by_bell")),
        *((name, np.uint64) for name in ("start_ns", "end_ns", "last_ns", "rest_until_ns")),
    ],
    align=True,
)
_OTHER = -1
#: Nobody may change the size, and nobody may lift that.
_SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def state_folder() -> Path:
    """Where the local enclave keeps its device key; made for this user alone if it is not there.

    `$CLOISTER_STATE`, else `cloister` in `$XDG_STATE_HOME`, else `~/.local/state/cloister`; in it `local-enclave`.

    Raises:
        UserError: it cannot be made.
    """
    folder = state_root() / "local-enclave"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        hint = "set CLOISTER_STATE to a folder that you can write to"
        raise UserError(f"{folder}: cannot be made: {error.strerror}", hint) from error
    return folder


def state_root() -> Path:
    """The folder of everything that Cloister keeps: `$CLOISTER_STATE`, or one of this user."""
    # An empty variable counts as unset, as the XDG base directory specification has it.
    if own := os.environ.get("CLOISTER_STATE"):
        return Path(own)
    if xdg := os.environ.get("XDG_STATE_HOME"):
        return Path(xdg) / "cloister"
    return Path.home() / ".local" / "state" / "cloister"


#: What each executable needs to be built with the package.
_BUILT_WITH = {
    "cloister-enclave": "a C compiler and OpenSSL's headers",
    "cloister-host": "a C compiler and libteec with its headers (optee-client-dev)",
}


def binary_path(name: str = "cloister-enclave") -> Path:
    """An executable of the package: `cloister-enclave` or `cloister-host`.

    Raises:
        EnclaveUnavailable: the package was built without it.
    """
    path = Path(str(importlib.resources.files("cloister") / "_bin" / name))
    if not os.access(path, os.X_OK):
        raise EnclaveUnavailable(
            f"{name} is missing: expected an executable at {path}",
            f"reinstall cloister where there are {_BUILT_WITH[name]}",
        )
    return path


def local_info() -> EnclaveInfo:
    """Start the local enclave, ask who it is, and end it.

    Raises:
        EnclaveError: it cannot be started, or does not answer.
    """
    descriptor = os.memfd_create("cloister-store", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "rb") as store:
        os.ftruncate(descriptor, _SMALL_STORE_BYTES)
        with LocalEnclave(store, payload_bytes=0, heap_bytes=MIN_HEAP_BYTES) as enclave:
            return enclave.info


class LocalEnclave(Enclave):
    """One enclave process and the memory shared with it. The process ends with the session."""

    def __init__(self, store: BinaryIO, *, payload_bytes: int, heap_bytes: int) -> None:
        """Start the process and ask who it is.

        Args:
            store: an open file, the bundle; mapped by the enclave, read-only.
            payload_bytes: shared memory for images and results.
            heap_bytes: the most memory that it may allocate.

        Raises:
            EnclaveError: it cannot be started, or does not answer.
        """
        total_bytes = CONTROL_BYTES + payload_bytes
        with contextlib.ExitStack() as undo:
            self._errors = undo.enter_context(memory_file("cloister-stderr", 0))
            self._socket, theirs = socket.socketpair()
            undo.enter_context(self._socket)
            with (
                memory_file("cloister-payload", total_bytes) as memory,
                memory_file("cloister-bell", _BELL_BYTES) as bell,
                theirs,
            ):
                self._payload, self._bell = _shared(memory, total_bytes), _shared(bell, _BELL_BYTES)
                files = {
                    "--socket": theirs.fileno(),
                    "--payload": memory.fileno(),
                    "--store": store.fileno(),
                    "--bell": bell.fileno(),
                }
                self._process = _start(files, heap_bytes, self._errors)
            undo.pop_all()
        # Runs at the latest when the object is collected or the interpreter exits: no process is left behind.
        self._end = weakref.finalize(self, _end, self._process, self._socket, self._errors)
        self._peer = np.zeros(1, _PEER)
        bell_at = pointer(np.frombuffer(self._bell, np.uint8))
        self._peer[["bell", "socket", "process", "processor"]] = bell_at, self._socket.fileno(), self._process.pid, -1
        self._peer_call = _peer_call()
        try:
            self.info = wire.unpack_info(self._answer(Command.INFO, wire.INFO_BYTES))
        except BaseException:
            self.close()
            raise

    @property
    def process_id(self) -> int:
        """The enclave's process."""
        return self._process.pid

    def call(self, command: Command, parameters: Sequence[Parameter]) -> tuple[int, ...]:
        """See `Enclave.call`."""
        call, response = self._prepare(command, parameters)
        call()
        return wire.unpack_sizes(response.tobytes())

    def prepare(self, command: Command, parameters: Sequence[Parameter]) -> Callable[[], object]:
        """See `Enclave.prepare`."""
        return self._prepare(command, parameters)[0]

    def _prepare(
        self, command: Command, parameters: Sequence[Parameter]
    ) -> tuple[Callable[[], None], npt.NDArray[np.uint8]]:
        """The call, and where its response will be."""
        request = np.frombuffer(bytearray(wire.pack_request(0, command, parameters)), np.uint8)
        response = np.zeros(wire.RESPONSE_BYTES, np.uint8)
        # A second thread of the enclave, which opens slices ahead, needs the processor that looking would take.
        may_look = not any(parameter.region == Region.STORE and parameter.size for parameter in parameters)
        arguments = pointer(self._peer), pointer(request), pointer(response), may_look
        parameters = tuple(parameters)

        def call() -> None:
            self._require_open()
            while (status := self._peer_call(*arguments)) == errno.EINTR:
                pass  # Python's own handlers run here
            if status == _OTHER:
                self._refused(command, parameters, response.tobytes(), int(request.view(np.uint32)[1]))
            elif status:
                raise self._crashed(command)

        return call, response

    def _refused(self, command: Command, parameters: Sequence[Parameter], response: bytes, sequence: int) -> NoReturn:
        """Raise what a response means that is no success."""
        try:
            result, _ = wire.unpack_response(response, sequence, parameters)
        except ProtocolError:
            self.close()  # which bytes belong to which response is unknown from here on
            raise
        wire.check_result(result, command)
        raise AssertionError("a success was taken for an error")

    def _crashed(self, command: Command) -> EnclaveCrashed:
        """The error for an enclave that is gone, with what is known of its end."""
        said, hint = last_words(self._errors)
        self.close()
        how = _describe_exit(self._process.returncode)
        message = f"the enclave {how} during `{command.name.lower()}`" + (f": {said}" if said else "")
        return EnclaveCrashed(message, hint or "load the bundle again; `cloister doctor` checks the enclave")


@functools.cache
def _peer_call() -> Callable[..., int]:
    """`cl_peer_call` of `native/posix/client.h`."""
    call = load_library().cl_peer_call
    call.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_bool]
    return cast("Callable[..., int]", call)


def memory_file(name: str, n_bytes: int) -> BinaryIO:
    """An anonymous file of a size, kept in memory."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, n_bytes)
    return os.fdopen(descriptor, "w+b", buffering=0)


def _shared(memory: BinaryIO, n_bytes: int) -> mmap.mmap:
    """Memory of a file whose size nobody can change."""
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SIZE_SEALS)
    return mmap.mmap(memory.fileno(), n_bytes)


def _start(files: dict[str, int], heap_bytes: int, errors: BinaryIO) -> subprocess.Popen[bytes]:
    arguments = [word for name, descriptor in files.items() for word in (name, str(descriptor))]
    binary = binary_path()
    try:
        return subprocess.Popen(
            [binary, *arguments, "--state", state_folder(), "--heap", str(heap_bytes), "--sets", str(allowed_sets())],
            pass_fds=tuple(files.values()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for the client, which then ends the enclave in order
        )
    except OSError as error:
        raise EnclaveUnavailable(f"{binary}: cannot be started: {error.strerror}") from error


def _end(process: subprocess.Popen[bytes], connection: socket.socket, errors: BinaryIO) -> None:
    connection.close()
    end_process(process)
    errors.close()


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process whose stream is closed: that ends it; one that does not listen is killed."""
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        # One that the kernel keeps, as it does while OP-TEE waits for a tee-supplicant that is stopped, is left to it.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)


def last_words(errors: BinaryIO) -> tuple[str, str]:
    """What a process wrote to its standard error: the last lines in one line, and its hint, empty if it has none."""
    size = os.fstat(errors.fileno()).st_size
    tail = os.pread(errors.fileno(), _STDERR_BYTES, max(0, size - _STDERR_BYTES))
    lines = tail.decode("utf-8", "replace").splitlines()
    hints = [line.removeprefix(_HINT) for line in lines if line.startswith(_HINT)]
    return " | ".join([line for line in lines if not line.startswith(_HINT)][-5:]), "; ".join(hints)


def _describe_exit(status: int | None) -> str:
    if status is None or status >= 0:
        return f"ended with exit status {status}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"
