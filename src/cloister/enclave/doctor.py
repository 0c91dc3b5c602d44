"""Whether this machine has what Cloister needs; each finding says what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import stat
import sys
from collections.abc import Iterator
from typing import Literal

import msgspec

from cloister.enclave import core, local
from cloister.enclave.wire import EnclaveInfo, Hardening
from cloister.errors import BundleError, CloisterError, EnclaveUnavailable

__all__ = ["Check", "checks"]

_MIN_PYTHON = (3, 11)
#: What protecting a model needs, by the versions that it is made for; running a bundle needs none of them.
_MODEL_PACKAGES = {"torch": "2.13", "torchao": "0.18"}
#: Below this, a model of some size cannot be kept from being swapped to disk.
_LOCKED_BYTES = 64 << 20

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
        core.OutsideProgram(bytes(64), b"")
    except EnclaveUnavailable as error:
        return Check(name="interpreter", state="fail", detail=str(error), fix=error.hint or "")
    except BundleError:
        return Check(name="interpreter", state="ok", detail="loads, and refuses what is no program")
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
