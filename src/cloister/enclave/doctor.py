"""Whether this machine has what Cloister needs; each finding says what to do about it."""

from __future__ import annotations

import grp
import importlib.metadata
import os
import platform
import resource
import stat
import sys
from collections.abc import Iterator
from typing import Literal

import msgspec

from cloister.boards import load_boards
from cloister.enclave import core, instructions, local, optee
from cloister.enclave.connect import enclave_info
from cloister.enclave.wire import EnclaveInfo, Hardening
from cloister.errors import BundleError, CloisterError, EnclaveUnavailable, UserError
from cloister.units import format_bytes

__all__ = ["Check", "checks"]

_MIN_PYTHON = (3, 11)
#: What protecting a model needs, by the versions that it is made for; running a bundle needs none of them.
_MODEL_PACKAGES = {"torch": "2.13", "torchao": "0.18"}
#: Below this, a model of some size cannot be kept from being swapped to disk.
_LOCKED_BYTES = 64 << 20
_ARM = ("aarch64", "armv7l", "armv8l")

_HARDENING_FIXES = {
    "not_dumpable": "the enclave asks for it itself: use a Linux kernel that is not older than 3.4",
    "no_core_files": "the enclave asks for it itself: use a Linux kernel that is not older than 3.4",
    "no_new_privileges": "use a Linux kernel that is not older than 3.5",
    "memory_locked": "raise the limit of locked memory (ulimit -l)",
    "memory_hidden": "boot Linux 5.14 or newer with secretmem.enable=1",
    "system_call_filter": "use a Linux kernel with seccomp filters, and a container that allows them",
}


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One finding.

    Attributes:
        name: what was checked.
        state: `ok`; `warn`: works, but weaker or only in part; `fail`: does not work.
        detail: what was found.
        fix: what to do about it; empty if nothing needs to be done.
    """

    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


def checks() -> list[Check]:
    """Check this machine: starts the local enclave once, and imports no torch.

    Returns:
        All findings, also the good ones.
    """
    return [
        _check_python(),
        *_check_enclave(),
        _check_core(),
        _check_state_folder(),
        _check_locked_memory(),
        *_check_optee(),
        _check_emulator(),
        *(_check_package(name, version) for name, version in _MODEL_PACKAGES.items()),
    ]


def _check_python() -> Check:
    wanted = ".".join(map(str, _MIN_PYTHON))
    good = sys.version_info >= _MIN_PYTHON
    fix = "" if good else f"use Python {wanted} or newer"
    return Check(name="python", state="ok" if good else "fail", detail=platform.python_version(), fix=fix)


def _check_enclave() -> Iterator[Check]:
    try:
        info = local.local_info()
    except CloisterError as error:
        yield Check(name="local enclave", state="fail", detail=str(error), fix=error.hint or "")
        return
    detail = f"version {info.version}, {info.isolation}"
    yield Check(name="local enclave", state="ok", detail=detail)
    yield from _check_hardening(info)


def _check_hardening(info: EnclaveInfo) -> Iterator[Check]:
    for name in Hardening.__struct_fields__:
        if name not in _HARDENING_FIXES:  # a process cannot have hardware isolation: nothing to find there
            continue
        label = name.replace("_", " ")
        if getattr(info.hardening, name):
            yield Check(name=label, state="ok", detail="yes")
        else:
            yield Check(name=label, state="warn", detail="no", fix=_HARDENING_FIXES[name])


def _check_core() -> Check:
    try:
        best = instructions.best_set(instructions.allowed_sets())
        core.OutsideProgram(bytes(64), b"")
    except (EnclaveUnavailable, UserError) as error:
        return Check(name="interpreter", state="fail", detail=str(error), fix=error.hint or "")
    except BundleError:
        return Check(name="interpreter", state="ok", detail=f"loads, and refuses what is no program; kernels: {best}")
    return Check(name="interpreter", state="fail", detail="runs what is no program", fix="reinstall cloister")


def _check_state_folder() -> Check:
    try:
        folder = local.state_folder()
        status = folder.stat()
    except (CloisterError, OSError) as error:
        fix = "set CLOISTER_STATE to a folder that you can write to"
        return Check(name="state folder", state="fail", detail=str(error), fix=fix)
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid() or mode & 0o077:
        detail = f"{folder} belongs to user {status.st_uid} with mode {mode:o}: others may read the device key"
        return Check(name="state folder", state="fail", detail=detail, fix=f"chmod 700 {folder}")
    return Check(name="state folder", state="ok", detail=str(folder))


def _check_locked_memory() -> Check:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return Check(name="locked memory limit", state="ok", detail="none")
    detail = f"{limit / (1 << 20):.1f} MiB"
    if limit >= _LOCKED_BYTES:
        return Check(name="locked memory limit", state="ok", detail=detail)
    fix = "raise it (ulimit -l, or LimitMEMLOCK= of a service): else larger insides may be swapped to disk"
    return Check(name="locked memory limit", state="warn", detail=detail, fix=fix)


# --- OP-TEE --------------------------------------------------------------------------------------------------------


def _check_optee() -> Iterator[Check]:
    """OP-TEE on this machine, from the driver to the trusted application."""
    if not optee.DEVICE.exists():
        yield _check_no_optee()
        return
    yield _check_device()
    yield _check_supplicant()
    yield from _check_application()


def _check_no_optee() -> Check:
    """Nothing is wrong with a computer that has none; a board may have one that the kernel does not know of."""
    detail = f"none on this machine: there is no {optee.DEVICE}"
    if platform.machine() not in _ARM:
        return Check(name="optee", state="ok", detail=detail)
    fix = "boot firmware with OP-TEE, with its node in the device tree, and load the kernel's driver: modprobe optee"
    return Check(name="optee", state="warn", detail=detail, fix=fix)


def _check_device() -> Check:
    if os.access(optee.DEVICE, os.R_OK | os.W_OK):
        return Check(name="optee device", state="ok", detail=str(optee.DEVICE))
    detail = f"{optee.DEVICE}: no permission to read and write"
    group = _group_name(optee.DEVICE.stat().st_gid)
    return Check(name="optee device", state="fail", detail=detail, fix=f"join its group: adduser $USER {group}")


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _check_supplicant() -> Check:
    runs = optee.supplicant_runs()
    if runs:
        return Check(name=optee.SUPPLICANT, state="ok", detail="runs")
    if runs is None:
        detail = "cannot be told: not all processes of this machine are to be seen from here"
        fix = f"see on the machine itself whether it runs: pgrep {optee.SUPPLICANT}"
        return Check(name=optee.SUPPLICANT, state="warn", detail=detail, fix=fix)
    return Check(name=optee.SUPPLICANT, state="fail", detail="does not run", fix=optee.SUPPLICANT_HINT)


def _check_application() -> Iterator[Check]:
    name = "trusted application"
    try:
        info = enclave_info("optee")
    except CloisterError as error:
        yield Check(name=name, state="fail", detail=str(error), fix=error.hint or "")
        return
    yield Check(name=name, state="ok", detail=f"{info.version} for board {info.board}")
    yield Check(name="its heap", state="ok", detail=format_bytes(info.heap_bytes))
    yield _check_secure_ram(info)
    yield _check_board(info.board)


def _check_secure_ram(info: EnclaveInfo) -> Check:
    name = "secure RAM"
    if info.hardening.hardware_isolation:
        return Check(name=name, state="ok", detail="the normal world cannot read the inside")
    fix = "none in software: use a board whose memory controller keeps the normal world out"
    return Check(name=name, state="warn", detail="none: the normal world can read the inside", fix=fix)


def _check_board(name: str) -> Check:
    """What else makes the board's protection worth less."""
    board = load_boards().get(name)
    if board is None:
        return Check(name="board", state="ok", detail=f"{name}: a profile of its own")
    weak = [text for text in board.weaknesses if "secure RAM" not in text]
    if not weak:
        return Check(name="board", state="ok", detail=board.title)
    fix = "a demonstration: ship on a board with secure boot and keys of your own, see docs/guides/add-a-board.md"
    return Check(name="board", state="warn", detail=f"{board.title}: {'; '.join(weak)}", fix=fix)


def _check_emulator() -> Check:
    """Nobody needs it; what it needs of the host is told."""
    from cloister import emulator
    from cloister.emulator import hosttools

    name = "emulator"
    try:
        running = [machine for machine in emulator.MACHINES if emulator.status(machine).process_id]
        if running:
            return Check(name=name, state="ok", detail=f"runs: {', '.join(running)}")
        hosttools.require(hosttools.RUNNING, hosttools.BUILDING)
    except CloisterError as error:
        return Check(name=name, state="warn", detail=str(error), fix=error.hint or "")
    return Check(name=name, state="ok", detail="does not run; all that it needs is installed")


# --- Packages ------------------------------------------------------------------------------------------------------


def _check_package(name: str, wanted: str) -> Check:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        detail = "not installed: bundles can be run, but no model protected"
        return Check(name=name, state="warn", detail=detail, fix=f"pip install '{name}=={wanted}.*'")
    if version.split(".")[:2] == wanted.split("."):
        return Check(name=name, state="ok", detail=version)
    fix = f"pip install '{name}=={wanted}.*'"
    return Check(name=name, state="warn", detail=f"expected {wanted}, but got {version}", fix=fix)
