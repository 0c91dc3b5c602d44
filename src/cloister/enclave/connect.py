"""The enclaves that there are, by name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

from cloister.enclave.client import Enclave
from cloister.enclave.wire import EnclaveInfo
from cloister.errors import UserError

if TYPE_CHECKING:
    from cloister.enclave.stream import Link

__all__ = ["ENCLAVES", "check_enclave", "connect", "enclave_info", "is_enclave"]

#: Names, and what they stand for.
ENCLAVES = {
    "local": "a process on this machine, isolated from others but not by hardware",
    "emulator": "OP-TEE in QEMU, see `cloister emulator`; `emulator:NAME` is one of its other machines",
    "optee": "OP-TEE on this board",
}


def is_enclave(name: str) -> bool:
    """Whether a name stands for an enclave: one of `ENCLAVES`, or `emulator:` and the name of a machine."""
    return name in ENCLAVES or name.startswith("emulator:")


def check_enclave(name: str) -> None:
    """Refuse a name that stands for no enclave.

    Raises:
        UserError: it does.
    """
    if not is_enclave(name):
        raise UserError(f"there is no enclave `{name}`", f"known are {', '.join(ENCLAVES)}")


def connect(
    name: str, store: BinaryIO, *, store_range: tuple[int, int], payload_bytes: int, heap_bytes: int
) -> Enclave:
    """Open a session with an enclave.

    Args:
        name: see `is_enclave`.
        store: an open file, the bundle.
        store_range: (offset, bytes) of what the enclave may need of it.
        payload_bytes: memory for images and results.
        heap_bytes: the most memory that a local enclave may allocate; the others have what their board gives.

    Raises:
        UserError: there is no such enclave.
        EnclaveError: it cannot be reached, or does not answer.
    """
    check_enclave(name)
    if name == "local":
        from cloister.enclave.local import LocalEnclave

        return LocalEnclave(store, payload_bytes=payload_bytes, heap_bytes=heap_bytes)
    from cloister.enclave.stream import StreamEnclave

    return StreamEnclave(_open_link(name), store, store_range=store_range, payload_bytes=payload_bytes)


def _open_link(name: str) -> Link:
    """A way to an enclave that is not in this machine's memory; none is imported but the one that is asked for."""
    if name == "optee":
        from cloister.enclave import optee

        return optee.open_link()
    from cloister import emulator

    return emulator.connect(name.partition(":")[2] or "virt")


def enclave_info(name: str) -> EnclaveInfo:
    """Ask an enclave who it is.

    Raises:
        UserError, EnclaveError: see `connect`.
    """
    if name == "local":
        from cloister.enclave.local import local_info

        return local_info()
    with (
        open(os.devnull, "rb") as nothing,
        connect(name, nothing, store_range=(0, 0), payload_bytes=0, heap_bytes=0) as enclave,
    ):
        return enclave.info
