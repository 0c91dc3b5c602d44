"""What the emulator's machines have in common. What is a machine's own lies in a file of its name."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import msgspec

from cloister.boards import Board, load_board
from cloister.emulator import build, hosttools
from cloister.emulator.apt import Apt
from cloister.emulator.cache import Cache, digest_of_folder
from cloister.enclave.instructions import arm_march

__all__ = ["Images", "Machine", "World", "in_option"]

World = Literal["linux", "optee"]

_FILES = "files.txt"


class Images(NamedTuple):
    """What a machine boots from.

    Attributes:
        firmware: folder of what `Machine.build_firmware` made.
        kernel: Linux, as QEMU loads it.
        initrd: its first file system, with the trusted application in it; beside it, what `Machine.finish` made.
    """

    firmware: Path
    kernel: Path
    initrd: Path


class Machine(abc.ABC):
    """A machine that QEMU acts as.

    Attributes:
        name: as `--machine` takes it.
        board: name of its board profile.
        suite: Debian's release that it is made of.
        packages: binary packages for arm64.
        kernel: a metapackage that depends on the kernel's; unpacked as `linux`.
        sources: source packages; unpacked in `src`.
        sid_sources: source packages of Debian's release `sid`, for what is not in `suite`; unpacked beside the others.
        modules: the kernel's modules that the guest loads.
        logs: files in the running machine's folder that it writes.
        n_ports: how many clients it can serve at once.
        tools: what building it needs of the host besides `hosttools.BUILDING`, in the same form.
    """

    name: str
    board: str
    suite: str
    packages: tuple[str, ...]
    kernel: str
    sources: tuple[str, ...]
    sid_sources: tuple[str, ...] = ()
    modules: tuple[str, ...]
    logs: tuple[str, ...] = ("linux.log", "optee.log")
    n_ports: int
    tools: Mapping[str, Callable[[], bool]] = MappingProxyType({})

    @abc.abstractmethod
    def build_firmware(self, packages: Path, target: Path) -> None:
        """Build what runs before Linux.

        Args:
            packages: what was fetched and unpacked.
            target: the folder to fill.
        """

    @abc.abstractmethod
    def build_programs(self, packages: Path, firmware: Path, target: Path) -> None:
        """Build the trusted application and `cloister-host`; see `build.build_programs`.

        Args:
            packages: what was fetched and unpacked.
            firmware: what `build_firmware` made.
            target: the folder to fill.
        """

    def finish(self, packages: Path, target: Path) -> None:  # noqa: B027  most machines need nothing
        """Make what else the machine boots from: nothing, as a rule.

        Args:
            packages: what was fetched and unpacked.
            target: a folder that holds `initrd.cpio`; what is made goes there, too.
        """

    def log(self, folder: Path, world: World) -> bytes:
        """What a world wrote to its serial line.

        Raises:
            FileNotFoundError: the machine was never started.
        """
        return (folder / f"{world}.log").read_bytes()

    def plug_in(self, folder: Path) -> None:  # noqa: B027
        """Plug in what must not be in a saved state: nothing, as a rule.

        Args:
            folder: the running machine's folder.

        Raises:
            EnclaveError, OSError: the machine has ended.
        """

    @abc.abstractmethod
    def arguments(self, images: Images, folder: Path) -> list[str]:
        """QEMU's arguments, but for those that all machines have.

        QEMU starts in the folder, so that names in it can be relative: those of `logs`, the control line
        `control` (a pair of pipes), and the sockets `port0` and so on. Afterwards it works in the root folder: disks,
        which it opens again, have their whole path.

        Args:
            images: what it boots from.
            folder: the running machine's folder.
        """

    @abc.abstractmethod
    def loads(self, images: Images) -> list[str]:
        """More arguments: what QEMU puts into RAM. Of no use to a machine that goes on from a saved state."""

    def fetch(self, downloads: Path, target: Path) -> None:
        """Fetch and unpack packages.

        Args:
            downloads: keeps what was fetched, also when the rest fails.
            target: the folder to fill.
        """
        apt = Apt(downloads / self.suite, self.suite)
        apt.update()
        kernel = apt.dependency(self.kernel)
        files = apt.unpack([*self.packages, kernel], target)
        (target / kernel).rename(target / "linux")
        files += apt.unpack_sources(self.sources, target / "src")
        if self.sid_sources:
            sid = Apt(downloads / "sid", "sid")
            sid.update()
            files += sid.unpack_sources(self.sid_sources, target / "src")
        (target / _FILES).write_text("".join(f"{file}\n" for file in files))

    @property
    def profile(self) -> Board:
        """Its board profile, with lesser kernels if `$CLOISTER_INSTRUCTIONS` names some of Arm."""
        board = load_board(self.board)
        return msgspec.structs.replace(board, march=arm_march() or board.march)

    def images(self, cache: Cache, tell: Callable[[str], None], *, anew: bool) -> Images:
        """Fetch and build what is not there yet.

        Args:
            cache: where it is kept.
            tell: told what is done.
            anew: build also what is there.

        Raises:
            EnclaveUnavailable: the host lacks something, or a step fails.
        """
        packages = self._packages(cache, tell)
        files = (packages / _FILES).read_text()
        recipe = [files, self._recipe()]

        def firmware(new: Path) -> None:
            self._ready_to_build(cache)
            tell("building the firmware")
            self.build_firmware(packages, new)

        def boot(new: Path) -> None:
            self._ready_to_build(cache)
            tell("building the trusted application")
            self.build_programs(packages, built_firmware, new)
            build.build_initrd(self.name, packages, new, self.modules, new / "initrd.cpio")
            self.finish(packages, new)

        sources = digest_of_folder(build.native_sources())
        inputs = [recipe, sources, self.profile]
        built_firmware = cache.made(f"{self.name}-firmware", recipe, firmware, anew=anew)
        built = cache.made(f"{self.name}-boot", inputs, boot, anew=anew)
        (kernel,) = (packages / "linux" / "boot").glob("vmlinuz-*")
        return Images(built_firmware, kernel, built / "initrd.cpio")

    def _packages(self, cache: Cache, tell: Callable[[str], None]) -> Path:
        def fetch(new: Path) -> None:
            self._ready_to_build(cache)
            tell("fetching Debian's packages")
            self.fetch(cache.root / "downloads", new)

        wanted: list[Any] = [self.suite, self.packages, self.kernel, self.sources, self.sid_sources]
        return cache.made(f"{self.name}-packages", wanted, fetch)

    def _ready_to_build(self, cache: Cache) -> None:
        build.check_paths(cache.root)
        hosttools.require(hosttools.RUNNING, hosttools.BUILDING, self.tools)

    def _recipe(self) -> str:
        """Changes with what says how to build."""
        folder = Path(__file__).parent
        parts = [folder / "machines.py", folder / "build.py", folder / f"{self.name}.py", *build.guest(self.name)]
        return hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()


def in_option(path: Path) -> str:
    """A path as a part of one of QEMU's options, in which commas set parts apart."""
    return str(path).replace(",", ",,")
