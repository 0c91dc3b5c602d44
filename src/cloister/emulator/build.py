"""Building what a machine runs: the trusted application, `cloister-host`, and the initrd that holds them."""

from __future__ import annotations

import importlib.resources
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from cloister import __version__
from cloister.boards import Board
from cloister.emulator import cpio
from cloister.emulator.hosttools import CROSS_COMPILE, run_tool
from cloister.errors import EnclaveUnavailable, UserError

__all__ = ["build_initrd", "build_programs", "check_paths", "guest", "make", "native_sources"]

_LIBRARIES = "usr/lib/aarch64-linux-gnu"
_LIBC = ("ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6")
#: Flags of `info`: the normal world cannot read the inside; whoever has the board can.
_SECURE_RAM, _DEMONSTRATION = 64, 128


def native_sources() -> Path:
    """The C sources that come with the package.

    Raises:
        EnclaveUnavailable: they do not.
    """
    path = Path(str(importlib.resources.files("cloister") / "_native"))
    if not (path / "optee" / "Makefile").is_file():
        raise EnclaveUnavailable(f"the sources of the trusted application are missing at {path}", "reinstall cloister")
    return path


def check_paths(cache: Path) -> None:
    """Check that make and the shell take all paths of a build as they are.

    Args:
        cache: where it is built.

    Raises:
        UserError: one has a space, a quote or the like in it.
    """
    hints = {
        cache: "set CLOISTER_CACHE to another folder",
        native_sources(): "install cloister in another folder",
        Path(sys.executable): "use a virtual environment in another folder",
    }
    for path, hint in hints.items():
        if odd := re.search(r"[^\w/.+,@-]", str(path)):
            raise UserError(f"{path}: the trusted application cannot be built with `{odd.group()}` in this path", hint)


def guest(machine: str) -> tuple[Path, Path]:
    """The script that is the first process of a machine's Linux, and the machine's own part of it."""
    folder = Path(__file__).with_name("guest")
    return folder / "init", folder / machine


def make(folder: Path, what: str, **variables: str | Path | int) -> None:
    """Run make.

    Args:
        folder: holds the Makefile.
        what: what is built, for the error.
        variables: make's variables; `targets`, if given, are the words to make.

    Raises:
        EnclaveUnavailable: it fails.
    """
    targets = str(variables.pop("targets", "")).split()
    words = [f"{name}={value}" for name, value in variables.items()]
    run_tool(
        ["make", "-s", f"-j{os.cpu_count() or 1}", "-C", folder, f"CROSS_COMPILE={CROSS_COMPILE}", *words, *targets],
        f"{what} cannot be built",
        hint="`cloister emulator up --fresh` builds everything anew",
    )


def build_programs(board: Board, *, kit: Path, client: Path, teec: Path, mbedtls: Path, target: Path) -> None:
    """Build the trusted application, signed with the kit's key, and `cloister-host`.

    Args:
        board: what they are for.
        kit: the TA dev kit of its OP-TEE.
        client: holds `usr/include` with libteec's header.
        teec: holds libteec.
        mbedtls: sources of Mbed TLS.
        target: where they go: `UUID.ta` and `cloister-host`.
    """
    sources = native_sources()
    flags = _SECURE_RAM * board.secure_ram + _DEMONSTRATION * bool(board.weaknesses)
    make(
        sources / "optee",
        "the trusted application",
        TA_DEV_KIT_DIR=kit,
        PYTHON3=sys.executable,
        O=target / "ta",
        BOARD=board.name,
        HEAP_BYTES=board.heap_bytes,
        STACK_BYTES=board.stack_bytes,
        MARCH=board.march,
        FLAGS=flags,
        MBEDTLS_DIR=mbedtls,
        VERSION=__version__,
    )
    make(
        sources / "host",
        "cloister-host",
        TEEC_INCLUDE=client / "usr/include",
        TEEC_LIB=teec / _LIBRARIES / "libteec.so.2",
        O=target / "host",
        MARCH=board.march,
        VERSION=__version__,
    )
    (application,) = (target / "ta").glob("*.ta")
    application.rename(target / application.name)
    (target / "host" / "cloister-host").rename(target / "cloister-host")
    shutil.rmtree(target / "ta")
    shutil.rmtree(target / "host")


def build_initrd(machine: str, packages: Path, programs: Path, modules: Iterable[str], target: Path) -> None:
    """Write the initrd.

    Args:
        machine: its name.
        packages: unpacked: busybox-static, libc6, libteec2, tee-supplicant, linux.
        programs: what `build_programs` made.
        modules: names of the kernel's modules that the guest may load.
        target: the file.
    """
    init, own = guest(machine)
    entries = {
        "init": cpio.program(init.read_bytes()),
        "etc/machine": cpio.program(own.read_bytes()),
        "bin/busybox": cpio.program((packages / "busybox-static/usr/bin/busybox").read_bytes()),
        "usr/sbin/tee-supplicant": cpio.program((packages / "tee-supplicant/usr/sbin/tee-supplicant").read_bytes()),
        "usr/bin/cloister-host": cpio.program((programs / "cloister-host").read_bytes()),
        "lib/ld-linux-aarch64.so.1": cpio.link(f"/{_LIBRARIES}/ld-linux-aarch64.so.1"),
        **{f"lib/modules/{name}.ko": cpio.program(data) for name, data in _modules(packages / "linux", modules)},
        **{f"lib/optee_armtz/{path.name}": cpio.program(path.read_bytes()) for path in programs.glob("*.ta")},
        **{name: cpio.folder() for name in ("dev", "proc", "sys", "tmp")},
    }
    libraries = [*(packages / "libc6" / _LIBRARIES / name for name in _LIBC)]
    libraries += (packages / "libteec2" / _LIBRARIES).glob("libteec.so.?")
    entries |= {f"{_LIBRARIES}/{path.name}": cpio.program(path.read_bytes()) for path in libraries}
    with target.open("wb") as file:
        cpio.write_archive(file, entries)


def _modules(linux: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    import lzma  # a small Python, as on a board, may come without it, and the doctor looks at this package

    for name in names:
        found = next(linux.rglob(f"{name}.ko.xz"), None)
        if found is None:
            raise EnclaveUnavailable(f"the kernel in {linux} has no module {name}")
        yield name, lzma.decompress(found.read_bytes())
