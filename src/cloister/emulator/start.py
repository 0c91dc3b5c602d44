"""Bringing a machine up: what it boots from, its storage, from a saved state or from nothing, to the first answer."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cloister.emulator import hosttools, qemu
from cloister.emulator.cache import Cache, cache_folder
from cloister.emulator.control import control, make_pipes
from cloister.emulator.instance import Instance, Start, Status
from cloister.emulator.machines import Images
from cloister.enclave.stream import StreamEnclave
from cloister.errors import EnclaveError, EnclaveUnavailable
from cloister.progress import Progress

__all__ = ["bring_up"]

_STORAGE_BYTES = 16 << 20
_BOOT_SECONDS = 180.0
_GO_SECONDS = 60.0
#: Packages, firmware, trusted application, storage, boot, state, answer.
_N_STEPS = 7


def bring_up(instance: Instance, *, fresh: bool, progress: Progress | None) -> Status:
    """Bring a machine up, unless it runs. Another process that does the same is waited for.

    Args:
        instance: the machine.
        fresh: build everything anew from the packages that are there, and start from nothing.
        progress: told what is done.

    Raises:
        EnclaveError: a step fails; nothing is left running.
    """
    tell = _teller(progress)
    instance.make_folder()
    with instance.locked(tell):
        status = instance.status()
        if status.start and not fresh:
            return status
        instance.down()
        cache = Cache(cache_folder() / "emulator", tell)
        images = instance.machine.images(cache, tell, anew=fresh)
        _make_storage(instance, tell)
        try:
            _start(instance, images, cache, tell, fresh=fresh)
        except BaseException:
            instance.kill()
            raise
        return instance.status()


def _teller(progress: Progress | None) -> Callable[[str], None]:
    n_told = 0

    def tell(text: str) -> None:
        nonlocal n_told
        if progress:
            progress.update(min(n_told, _N_STEPS), _N_STEPS, text)
        n_told += 1

    return tell


def _make_storage(instance: Instance, tell: Callable[[str], None]) -> None:
    """Make the disk that keeps what OP-TEE stores, unless it is there: it holds the device key.

    The file has no holes: a machine whose disk's file cannot grow would stand still.

    Raises:
        EnclaveUnavailable: there is no room for it.
    """
    path = instance.folder / "storage.img"
    if path.exists():
        return
    tell("making the storage")
    hosttools.require({"e2fsprogs": hosttools.BUILDING["e2fsprogs"]})
    new = path.with_suffix(".new")
    options = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
    try:
        _fill_holes(new)
        hosttools.run_tool(["mke2fs", "-q", "-F", "-t", "ext4", "-E", options, new], "the storage cannot be made")
        _fill_holes(new)  # it makes some where it wants zeros
        instance.empty_mark.touch()
        new.rename(path)
    except OSError as error:
        raise EnclaveUnavailable(
            f"{path}: the storage of {_STORAGE_BYTES >> 20} MiB cannot be made: {error.strerror}",
            "make room, or set CLOISTER_STATE",
        ) from error
    finally:
        new.unlink(missing_ok=True)


def _fill_holes(path: Path) -> None:
    with path.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, _STORAGE_BYTES)


def _start(instance: Instance, images: Images, cache: Cache, tell: Callable[[str], None], *, fresh: bool) -> None:
    """From the saved state if there is one that works, otherwise from nothing."""
    machine = instance.machine
    extra = list(qemu.COUNTING) if instance.counting else []
    loads = machine.loads(images)
    # What a state must fit; the machine's folder may be another one.
    inputs = [qemu.identity(), machine.arguments(images, Path()), loads, extra]
    name = f"state-{instance.folder.name}"
    saved = cache.path(name, inputs)
    arguments = [*machine.arguments(images, instance.folder), *extra]
    began = time.monotonic()
    # A saved state holds OP-TEE's random numbers: all who make their device key from one would have the same.
    may_restore = saved.is_dir() and not fresh and not instance.empty_mark.exists()
    restored = may_restore and _restore(instance, arguments, saved, tell)
    unsaved = ""
    if not restored:

        def save(new: Path) -> None:
            tell("saving the machine's state")
            qemu.save_state(instance.folder, new / "state")
            for log in instance.machine.logs:
                shutil.copyfile(instance.folder / log, new / log)

        tell("starting the machine")
        began = time.monotonic()
        _run(instance, [*arguments, *loads], None)
        with _last_words(instance), control(instance.folder) as guest:
            guest.wait(seconds=_BOOT_SECONDS)
        try:
            cache.made(name, inputs, save, anew=True, keep=1)
        except EnclaveUnavailable as error:
            unsaved = str(error)
        _go(instance)
    tell("asking the trusted application")
    with StreamEnclave(instance.link()) as enclave:
        seconds = time.monotonic() - began
        instance.mark_ready(Start(restored=restored, seconds=seconds, info=enclave.info, unsaved=unsaved))
    instance.empty_mark.unlink(missing_ok=True)


def _restore(instance: Instance, arguments: list[str], saved: Path, tell: Callable[[str], None]) -> bool:
    """Go on from a saved state. One that does not fit, or is gone, is no error: the machine can start from nothing."""
    tell("starting the machine from its saved state")
    try:
        _run(instance, arguments, saved)
        _go(instance)
        return True
    except _StorageError:
        raise
    except (EnclaveError, OSError) as error:
        tell(f"the saved state does not work: {error}")
        instance.kill()
        return False


def _run(instance: Instance, arguments: list[str], saved: Path | None) -> None:
    """Start QEMU. The logs of a saved state begin with what had been written when it was saved."""
    for log in instance.machine.logs:
        path = instance.folder / log
        path.unlink(missing_ok=True)
        if saved:
            shutil.copyfile(saved / log, path)
    make_pipes(instance.folder)
    qemu.start(instance.folder, arguments, saved / "state" if saved else None)


class _StorageError(EnclaveUnavailable):
    """The storage cannot be mounted."""


def _go(instance: Instance) -> None:
    """Let OP-TEE use its storage."""
    with _last_words(instance), control(instance.folder) as guest:
        instance.machine.plug_in(instance.folder)
        status, said = guest.ask("go", seconds=_GO_SECONDS)
    if status != 0:
        raise _StorageError(
            f"the storage of the emulator cannot be used: {said}",
            f"remove {instance.folder / 'storage.img'}: the device key is lost with it",
        )


@contextlib.contextmanager
def _last_words(instance: Instance) -> Iterator[None]:
    """An error tells what the machine wrote last."""
    try:
        yield
    except (EnclaveError, OSError) as error:
        hint = error.hint if isinstance(error, EnclaveError) else None
        raise EnclaveError(f"{error}; it wrote last:\n{instance.last_words()}", hint) from error
