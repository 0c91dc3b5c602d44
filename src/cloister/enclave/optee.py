"""The trusted application on this board: `cloister-host`, spawned, stands between it and this process."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from pathlib import Path
from typing import BinaryIO

from cloister.enclave.local import binary_path, end_process, last_words, memory_file
from cloister.enclave.stream import Link
from cloister.errors import EnclaveUnavailable

__all__ = ["DEVICE", "SUPPLICANT", "SUPPLICANT_HINT", "open_link", "supplicant_runs"]

#: Where the kernel's OP-TEE driver is.
DEVICE = Path("/dev/tee0")
#: Loads trusted applications and keeps their storage: without it the kernel waits, and so does whoever opens one.
SUPPLICANT = "tee-supplicant"
SUPPLICANT_HINT = "apt install tee-supplicant, then systemctl enable --now tee-supplicant"
_HINT = "`cloister doctor` checks OP-TEE, tee-supplicant and the trusted application"
_INSTALL_HINT = (
    "build it with the dev kit of this board's OP-TEE and put it into /lib/optee_armtz, "
    "see docs/guides/add-a-board.md; `cloister doctor` checks it"
)


def open_link() -> Link:
    """Start `cloister-host`.

    Raises:
        EnclaveUnavailable: there is no OP-TEE here, no permission, no tee-supplicant, or no `cloister-host`.
    """
    _check_device()
    if supplicant_runs() is False:
        raise EnclaveUnavailable(f"{SUPPLICANT} does not run: OP-TEE cannot load what runs inside", SUPPLICANT_HINT)
    binary = binary_path("cloister-host")
    with contextlib.ExitStack() as undo:
        errors = undo.enter_context(memory_file("cloister-stderr", 0))
        ours, theirs = socket.socketpair()
        undo.enter_context(ours)
        with theirs:
            process = _start(binary, theirs, errors)
        undo.pop_all()

    def close() -> str:
        end_process(process)
        said, _ = last_words(errors)
        errors.close()
        return said

    return Link(stream=ours, process_id=process.pid, close=close, hint=_HINT, install_hint=_INSTALL_HINT)


def _check_device() -> None:
    if not DEVICE.exists():
        raise EnclaveUnavailable(
            f"there is no OP-TEE on this machine: expected {DEVICE}",
            "load the kernel's `optee` driver; on a machine without OP-TEE use --enclave emulator or local",
        )
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise EnclaveUnavailable(f"{DEVICE}: no permission", f"join its group: ls -l {DEVICE} shows which")


def supplicant_runs(processes: Path = Path("/proc")) -> bool | None:
    """Whether tee-supplicant runs; None where that cannot be told: in a container, or if others' processes are hidden.

    Args:
        processes: the kernel's folder of processes.
    """
    names = {_process_name(folder) for folder in processes.glob("[0-9]*")}
    if SUPPLICANT in names:
        return True
    # Whoever sees this process of the kernel sees all.
    return False if _process_name(processes / "2") == "kthreadd" else None


def _process_name(folder: Path) -> str:
    try:
        return (folder / "comm").read_text().strip()
    except OSError:  # it ended meanwhile
        return ""


def _start(binary: Path, stream: socket.socket, errors: BinaryIO) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [binary, "--stdio"],
            stdin=stream.fileno(),
            stdout=stream.fileno(),
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for the client, which then ends the session in order
        )
    except OSError as error:
        raise EnclaveUnavailable(f"{binary}: cannot be started: {error.strerror}") from error
