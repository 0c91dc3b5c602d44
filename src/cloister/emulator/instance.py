"""A running machine, and its folder: process, ports, storage, logs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from cloister.emulator import qemu
from cloister.emulator.cache import check_owner, locked
from cloister.emulator.control import control
from cloister.emulator.machines import Machine, World
from cloister.enclave.local import state_root
from cloister.enclave.stream import Link
from cloister.enclave.wire import EnclaveInfo
from cloister.errors import EnclaveBusy, EnclaveError, EnclaveUnavailable, UserError

__all__ = ["Instance", "Start", "Status", "World"]

_FOLDER_HINT = "set CLOISTER_STATE to a folder that you can write to"
_HINT = "`cloister emulator up` starts it; `cloister emulator logs` shows what it wrote"
_INSTALL_HINT = "`cloister emulator up --fresh` builds the trusted application anew"
_LAST_LINES = 5
_END_SECONDS = 0.5
_STOP_SECONDS = 15.0


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """How a machine came up.

    Attributes:
        restored: from a saved state; otherwise from nothing.
        seconds: from the start of QEMU to the first answer of the trusted application.
        info: that answer.
        unsaved: why its state could not be saved for the next start; empty if it was, or need not be.
    """

    restored: bool
    seconds: float
    info: EnclaveInfo
    unsaved: str = ""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How a machine is.

    Attributes:
        machine: its name.
        board: name of its board profile.
        counting: it counts instructions instead of time.
        process_id: QEMU's process, or None: the machine does not run.
        unready_process_id: QEMU's process where the machine cannot be used: an `up` is under way, or was killed.
        start: how it came up, or None.
        clients: the processes that it serves.
        folder: where its storage and its logs are.
    """

    machine: str
    board: str
    counting: bool
    process_id: int | None
    unready_process_id: int | None
    start: Start | None
    clients: tuple[int, ...]
    folder: str


class Instance:
    """A machine with its folder.

    Args:
        machine: what it is.
        counting: a machine of its own that counts instructions instead of time.

    Attributes:
        folder: its storage, logs, sockets.
    """

    def __init__(self, machine: Machine, *, counting: bool) -> None:
        self.machine = machine
        self.counting = counting
        self.folder = state_root().absolute() / "emulator" / (machine.name + "-counting" * counting)

    def make_folder(self) -> None:
        """Make the folder, for this user alone.

        Raises:
            UserError: it cannot be made, or others may write there.
        """
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be made: {error.strerror}", _FOLDER_HINT) from error
        self.check_folder()

    def check_folder(self) -> None:
        """Check that the folder, if there is one, is this user's alone.

        Raises:
            UserError: it is another's, or others may write there.
        """
        with contextlib.suppress(PermissionError):  # then the check tells
            if not self.folder.exists():
                return
        check_owner(self.folder, _FOLDER_HINT)

    @contextlib.contextmanager
    def locked(self, waiting: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """Hold the machine's lock: one process at a time brings it up or down. See `cache.locked`.

        Raises:
            UserError: what is done meanwhile cannot read or write a file.
        """
        try:
            with locked(self.folder / "lock", waiting):
                yield
        except OSError as error:
            hint = "make room, or set CLOISTER_STATE and CLOISTER_CACHE to folders that you can write to"
            raise UserError(f"{error.filename or self.folder}: {error.strerror or error}", hint) from error

    # --- How it is -------------------------------------------------------------------------------------------------

    @property
    def _ready(self) -> Path:
        """Its presence says that the trusted application has answered."""
        return self.folder / "ready.json"

    def mark_ready(self, start: Start) -> None:
        """Note that the machine can be used."""
        new = self._ready.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(start))
        new.rename(self._ready)

    def status(self) -> Status:
        """How the machine is."""
        process = qemu.process_id(self.folder)
        start = None
        if process:
            with contextlib.suppress(OSError, msgspec.DecodeError):
                start = msgspec.json.decode(self._ready.read_bytes(), type=Start)
        return Status(
            machine=self.machine.name,
            board=self.machine.board,
            counting=self.counting,
            process_id=process if start else None,
            unready_process_id=None if start else process,
            start=start,
            clients=tuple(self._clients()) if start else (),
            folder=str(self.folder),
        )

    def log(self, world: World) -> str:
        """What Linux or OP-TEE wrote to its serial line since the machine was started; empty if it never was."""
        with contextlib.suppress(FileNotFoundError):
            text = self.machine.log(self.folder, world).decode("utf-8", "replace")
            return text.replace("\r", "").replace("\0", "")
        return ""

    def last_words(self) -> str:
        """The last lines of both logs, each with its world."""
        return "\n".join(
            f"{world}: {line}" for world in ("linux", "optee") for line in self.log(world).splitlines()[-_LAST_LINES:]
        )

    # --- Clients ---------------------------------------------------------------------------------------------------

    def connect(self) -> Link:
        """Take a free port of the machine.

        Raises:
            EnclaveUnavailable: the machine does not run.
            EnclaveBusy: all ports are taken.
        """
        if self.status().process_id is None:
            raise EnclaveUnavailable(f"the emulator `{self.folder.name}` is not running", self._up_command())
        return self.link()

    def link(self) -> Link:
        """The same for a machine that is not ready yet."""
        with contextlib.ExitStack() as undo:
            number = self._take_port(undo)
            try:
                stream = qemu.connect_socket(self.folder, f"port{number}")
            except OSError as error:
                raise EnclaveUnavailable(f"the emulator's port {number} is gone: {error.strerror}", _HINT) from error
            # Whoever uses the stream closes it first; this one still tells whether the other end is there.
            watch = undo.enter_context(stream.dup())
            held = undo.pop_all()

        def close() -> str:
            ended = _is_at_end(watch)
            held.close()
            return self._how_it_ended() if ended else ""

        process = qemu.process_id(self.folder)
        return Link(stream=stream, process_id=process, close=close, hint=_HINT, install_hint=_INSTALL_HINT)

    def _take_port(self, undo: contextlib.ExitStack) -> int:
        """A free port's number; its lock is held until the stack is closed."""
        for number in range(self.machine.n_ports):
            file = undo.enter_context(self._port_lock(number))
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.truncate(0)
                file.write(f"{os.getpid()}\n".encode())
                return number
        holders = ", ".join(map(str, sorted(set(self._clients()))))
        raise EnclaveBusy(
            f"all {self.machine.n_ports} ports of the emulator are taken, by process {holders}",
            "wait until one of them is done, or end one",
        )

    def _port_lock(self, number: int) -> BinaryIO:
        return (self.folder / f"port{number}.lock").open("ab+", buffering=0)

    def _clients(self) -> Iterator[int]:
        """The processes that hold a port, once for each."""
        for number in range(self.machine.n_ports):
            with self._port_lock(number) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.seek(0)
                    yield int(file.read() or b"0")

    def _how_it_ended(self) -> str:
        """Why a port was closed at its other end."""
        end = time.monotonic() + _END_SECONDS
        while qemu.process_id(self.folder):
            if time.monotonic() > end:
                return ""
            time.sleep(0.01)
        return "the emulator has ended"

    def _up_command(self) -> str:
        return "cloister emulator up" + f" --machine {self.machine.name}" * (self.machine.name != "virt")

    # --- Its Linux and its end -------------------------------------------------------------------------------------

    def shell(self, command: str, *, seconds: float = 30.0) -> tuple[int, str]:
        """Run a command of the shell as root in the machine's Linux: for tests, and to see what is wrong.

        Returns:
            Exit status and output.

        Raises:
            EnclaveError: the machine does not run, or does not answer in time.
        """
        with control(self.folder) as guest:
            return guest.shell(command, seconds=seconds)

    @property
    def empty_mark(self) -> Path:
        """Its presence says that the storage is new: there may be no device key in it yet."""
        return self.folder / "storage.empty"

    def down(self) -> None:
        """End the machine in order: its storage is whole. One that does not listen is killed."""
        self._ready.unlink(missing_ok=True)
        with contextlib.suppress(EnclaveError, OSError), control(self.folder) as guest:
            guest.ask("stop", seconds=_STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the machine at once, if it runs."""
        self._ready.unlink(missing_ok=True)
        qemu.kill(self.folder)


def _is_at_end(stream: socket.socket) -> bool:
    try:
        return not stream.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
