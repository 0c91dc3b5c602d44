"""A real OP-TEE in an emulated machine: Linux, OP-TEE and the trusted application, in QEMU, from Debian's packages.

It is for trying and testing. It protects nothing from whoever runs it: its memory is that of a process of theirs, and
the keys that its firmware and its storage are built on are public.
"""

from __future__ import annotations

from cloister.emulator.instance import Instance, Start, Status, World
from cloister.emulator.machines import Machine
from cloister.emulator.rpi3 import Rpi3
from cloister.emulator.start import bring_up
from cloister.emulator.virt import Virt
from cloister.enclave.stream import Link
from cloister.errors import UserError
from cloister.progress import Progress

__all__ = ["MACHINES", "Start", "Status", "connect", "down", "instance", "logs", "status", "up"]

#: The machines by their names.
MACHINES: dict[str, Machine] = {machine.name: machine for machine in (Virt(), Rpi3())}


def instance(machine: str = "virt", *, counting: bool = False) -> Instance:
    """A machine with its folder.

    Args:
        machine: its name.
        counting: the one that counts instructions instead of time. It has a device key of its own.

    Raises:
        UserError: there is no such machine, or its folder is not this user's alone.
    """
    if machine not in MACHINES:
        raise UserError(f"there is no machine `{machine}`", f"known are {', '.join(MACHINES)}")
    one = Instance(MACHINES[machine], counting=counting)
    one.check_folder()
    return one


def up(
    machine: str = "virt", *, counting: bool = False, fresh: bool = False, progress: Progress | None = None
) -> Status:
    """Bring a machine up, unless it runs: set it up if need be, start it, and wait for its first answer.

    Args:
        machine: see `instance`.
        counting: see `instance`.
        fresh: build everything anew, and start from nothing instead of from the saved state. Its storage stays.
        progress: told what is done.

    Raises:
        EnclaveError: the host lacks something, a download breaks off, a build fails, or the machine does not start.
            Nothing is left running; what was fetched is kept.
    """
    return bring_up(instance(machine, counting=counting), fresh=fresh, progress=progress)


def down(machine: str = "virt", *, counting: bool = False) -> Status:
    """End a machine, if it runs. Its storage stays, with the device key in it."""
    one = instance(machine, counting=counting)
    if one.folder.is_dir():
        with one.locked():
            one.down()
    return one.status()


def status(machine: str = "virt", *, counting: bool = False) -> Status:
    """How a machine is."""
    return instance(machine, counting=counting).status()


def logs(machine: str = "virt", world: World = "linux", *, counting: bool = False) -> str:
    """What a machine's Linux or OP-TEE wrote since it was started."""
    return instance(machine, counting=counting).log(world)


def connect(machine: str = "virt", *, counting: bool = False) -> Link:
    """A way to the trusted application of a machine that runs; its port is free again when the link is closed.

    Raises:
        EnclaveUnavailable: the machine does not run.
        EnclaveBusy: it serves as many clients as it can.
    """
    return instance(machine, counting=counting).connect()
