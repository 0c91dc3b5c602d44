"""A QEMU process: started, spoken to over its monitor, saved and ended."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cloister.emulator.hosttools import QEMU, RUNNING, require, run_tool, tool
from cloister.errors import EnclaveError, EnclaveUnavailable

__all__ = ["COUNTING", "connect_socket", "identity", "kill", "monitor", "process_id", "save_state", "start"]

#: Instructions instead of time: each takes a nanosecond of the guest's time, and nothing depends on the host's clock.
COUNTING = (
    *("-icount", "shift=0,sleep=off"),
    *("-rtc", "base=2026-01-01T00:00:00,clock=vm"),
    *("-seed", "1"),
)
_COMMON = (
    *("-nodefaults", "-display", "none", "-no-reboot", "-nic", "none"),
    *("-qmp", "unix:qmp,server=on,wait=off", "-pidfile", "pid", "-daemonize"),
)
_PATIENCE_SECONDS = 30.0
_POLL_SECONDS = 0.01


def identity() -> list[object]:
    """What changes with QEMU's program: a saved state fits no other.

    Raises:
        EnclaveUnavailable: QEMU is not installed.
    """
    require(RUNNING)
    path = Path(str(tool(QEMU))).resolve()
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]


def start(folder: Path, arguments: Sequence[str], state: Path | None) -> None:
    """Start a machine in a session of its own.

    Args:
        folder: where it runs: relative names in the arguments lie there.
        arguments: QEMU's, but for those that all machines have.
        state: a saved state to go on from.

    Raises:
        EnclaveUnavailable: it does not start.
    """
    incoming = ["-incoming", f"exec:cat {shlex.quote(str(state))}"] if state else []
    run_tool([QEMU, *arguments, *_COMMON, *incoming], "the emulator does not start", cwd=folder)


def process_id(folder: Path) -> int | None:
    """The process that runs a folder's machine, or None: QEMU holds a lock on its pid file as long as it lives."""
    try:
        with (folder / "pid").open("rb") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return int(file.read() or b"0") or None
    except FileNotFoundError:
        pass
    return None


def kill(folder: Path) -> None:
    """End a folder's machine at once, and wait until it is gone.

    Raises:
        EnclaveError: its process is none of QEMU.
    """
    with contextlib.suppress(OSError, EnclaveError), monitor(folder) as ask:
        ask("quit")
    end = time.monotonic() + 2
    while (process := process_id(folder)) and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    while process := process_id(folder):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            _kill(process, folder)
        time.sleep(_POLL_SECONDS)


def _kill(process: int, folder: Path) -> None:
    program = os.readlink(f"/proc/{process}/exe")
    if QEMU not in Path(program).name:
        text = f"{folder / 'pid'}: expected a process of {QEMU}, but process {process} is {program}"
        raise EnclaveError(text, "remove that file")
    os.kill(process, signal.SIGKILL)


def connect_socket(folder: Path, name: str) -> socket.socket:
    """Connect to a socket in a folder, however long the folder's path is.

    Raises:
        OSError: nobody listens there.
    """
    stream = socket.socket(socket.AF_UNIX)
    # A socket's path has at most 107 bytes; the way over an open folder is short.
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        stream.connect(f"/proc/self/fd/{descriptor}/{name}")
    except BaseException:
        stream.close()
        raise
    finally:
        os.close(descriptor)
    return stream


class _Monitor:
    """QEMU's monitor: a line of JSON each way."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._lines = stream.makefile("rb")
        self._lines.readline()  # its greeting
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Execute a command.

        Raises:
            EnclaveError: it fails.
        """
        self._stream.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        for line in self._lines:
            answer = json.loads(line)
            if "error" in answer:
                raise EnclaveError(f"QEMU refuses `{command}`: {answer['error'].get('desc')}")
            if "return" in answer:
                return answer["return"]
        raise EnclaveError(f"QEMU ended during `{command}`")


@contextlib.contextmanager
def monitor(folder: Path) -> Iterator[_Monitor]:
    """A machine's monitor.

    Raises:
        OSError: it does not run, or does not answer.
    """
    with connect_socket(folder, "qmp") as stream:
        stream.settimeout(_PATIENCE_SECONDS)
        yield _Monitor(stream)


def save_state(folder: Path, target: Path) -> None:
    """Write the whole state of a running machine to a file; the machine goes on.

    Raises:
        EnclaveUnavailable: it cannot be written.
    """
    with monitor(folder) as ask:
        ask("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        ask("migrate", uri=f"exec:cat > {shlex.quote(str(target))}")
        while (status := ask("query-migrate")["status"]) not in ("completed", "failed", "cancelled"):
            time.sleep(_POLL_SECONDS)
        ask("cont")
    if status != "completed":
        raise EnclaveUnavailable(f"{target}: the state of the machine cannot be written: {status}")
