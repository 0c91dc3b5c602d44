"""What this host must have for the emulator, and which Debian packages it comes from."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from cloister.errors import EnclaveUnavailable

__all__ = [
    "BUILDING",
    "BUILDING_OPTEE",
    "CROSS_COMPILE",
    "KEYRING",
    "PYTHON",
    "QEMU",
    "RUNNING",
    "require",
    "run_tool",
    "tool",
]

QEMU = "qemu-system-aarch64"
CROSS_COMPILE = "aarch64-linux-gnu-"
#: Debian's own Python: it has Debian's modules.
PYTHON = "/usr/bin/python3"
#: Debian's public keys: whatever comes from a mirror must be signed with one of them.
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
#: Where programs for administrators are, which users' PATH often lacks.
_MORE_FOLDERS = ("/usr/sbin", "/sbin")
_LAST_LINES = 12


def tool(name: str) -> str | None:
    """The path of a program, or None if there is none of that name."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_MORE_FOLDERS]))


def _program(name: str) -> Callable[[], bool]:
    return lambda: tool(name) is not None


def _header(compiler: str, header: str) -> Callable[[], bool]:
    """Whether a compiler finds a header; True without the compiler, which is then missed by itself."""

    def found() -> bool:
        path = tool(compiler)
        if path is None:
            return True
        words = [path, "-E", "-x", "c", "-include", header, "/dev/null"]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    return found


def _module(name: str) -> Callable[[], bool]:
    """Whether Debian's Python has a module."""

    def found() -> bool:
        words = [PYTHON, "-c", f"import {name}"]
        return Path(PYTHON).exists() and subprocess.run(words, capture_output=True, check=False).returncode == 0

    return found


#: What running a machine needs, by Debian package.
RUNNING: Mapping[str, Callable[[], bool]] = {"qemu-system-arm": _program(QEMU)}
#: What building firmware, trusted application and initrd needs besides.
BUILDING: Mapping[str, Callable[[], bool]] = {
    "gcc": _program("gcc"),
    "libssl-dev": _header("gcc", "openssl/sha.h"),
    "gcc-aarch64-linux-gnu": _program(f"{CROSS_COMPILE}gcc"),
    "libc6-dev-arm64-cross": _header(f"{CROSS_COMPILE}gcc", "stdlib.h"),
    "make": _program("make"),
    "dpkg-dev": _program("dpkg-source"),
    "e2fsprogs": _program("mke2fs"),
    "debian-archive-keyring": KEYRING.is_file,
}
#: What building OP-TEE itself and editing a board's device tree needs besides.
BUILDING_OPTEE: Mapping[str, Callable[[], bool]] = {
    "device-tree-compiler": _program("fdtput"),
    "python3-cryptography": _module("cryptography"),
    "python3-pyelftools": _module("elftools"),
}


def require(*groups: Mapping[str, Callable[[], bool]]) -> None:
    """Check that this host has what is needed.

    Raises:
        EnclaveUnavailable: something is missing; names all of it and the command that installs it.
    """
    missing = list(_missing(groups))
    if not missing:
        return
    if tool("apt-get") is None:
        raise EnclaveUnavailable(
            "the emulator is made from Debian's packages, but this host has no apt-get",
            "use Debian or a system derived from it, for example in a container",
        )
    raise EnclaveUnavailable(
        f"the emulator needs packages that are not installed: {', '.join(missing)}",
        f"apt install --no-install-recommends {' '.join(missing)}",
    )


def _missing(groups: Sequence[Mapping[str, Callable[[], bool]]]) -> Iterator[str]:
    for group in groups:
        yield from (package for package, is_there in group.items() if not is_there())


def run_tool(
    words: Sequence[object],
    what: str,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    hint: str = "",
) -> str:
    """Run a program to its end.

    Args:
        words: the program and its arguments: texts, paths, numbers.
        what: what fails if it does, as the start of a sentence.
        cwd: where it runs.
        env: variables to set besides those of this process.
        hint: what to do if it fails.

    Returns:
        What it wrote.

    Raises:
        EnclaveUnavailable: it is missing or fails; with its last lines.
    """
    plain = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    try:
        done = subprocess.run(
            [tool(str(words[0])) or str(words[0]), *map(str, words[1:])],
            cwd=cwd,
            env={**plain, "LC_ALL": "C", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise EnclaveUnavailable(f"{what}: {words[0]} cannot be started: {error.strerror}", hint or None) from error
    if done.returncode != 0:
        last = "\n".join(done.stdout.strip().splitlines()[-_LAST_LINES:])
        raise EnclaveUnavailable(f"{what}: {words[0]} ended with {done.returncode}:\n{last}", hint or None)
    return done.stdout
