"""What was fetched and built, kept by what it was made from; nothing half-made is ever found there."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from cloister.errors import EnclaveUnavailable, UserError

__all__ = ["Cache", "cache_folder", "check_owner", "digest_of_folder", "locked"]

_NEW = ".new-"
_KEY_DIGITS = 16
_HINT = "set CLOISTER_CACHE to a folder that you can write to"


def cache_folder() -> Path:
    """Where it all lies: `$CLOISTER_CACHE`, else `cloister` in `$XDG_CACHE_HOME`, else `~/.cache/cloister`.

    Raises:
        UserError: it cannot be made, or others may write there.
    """
    if own := os.environ.get("CLOISTER_CACHE"):
        folder = Path(own)
    elif xdg := os.environ.get("XDG_CACHE_HOME"):
        folder = Path(xdg) / "cloister"
    else:
        folder = Path.home() / ".cache" / "cloister"
    folder = folder.absolute()
    _make_folder(folder)
    return folder


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}", _HINT) from error
    check_owner(folder, _HINT)


def check_owner(folder: Path, hint: str) -> None:
    """Check that a folder is this user's and nobody else may write there: what lies in it is run, or killed.

    Raises:
        UserError: it is another's, open to others, or cannot be reached.
    """
    try:
        about, own = folder.stat(), folder.lstat()
    except OSError as error:
        raise UserError(f"{folder}: cannot be used: {error.strerror}", hint) from error
    if {about.st_uid, own.st_uid} != {os.geteuid()}:
        raise UserError(f"{folder}: belongs to user {about.st_uid}; expected {os.geteuid()}, the current one", hint)
    if about.st_mode & 0o022:
        mode = stat.S_IMODE(about.st_mode)
        text = f"{folder}: others may write there; expected no more than mode 0755, but got {mode:04o}"
        raise UserError(text, f"chmod go-w {folder} if nobody did, or {hint}")


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock file; whoever else wants it waits.

    Args:
        path: the lock file; made if it is not there.
        waiting: told who holds it, once, before waiting.
    """
    with path.open("ab+", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            waiting(f"waiting for process {(file.read() or b'?').decode().strip()}")
            fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):  # on a full disk a lock holds as well
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())
        yield


class Cache:
    """Folders by name and by what they were made from.

    Args:
        root: the folder that holds them; made if it is not there.
        waiting: told when another process makes something.
    """

    def __init__(self, root: Path, waiting: Callable[[str], None]) -> None:
        self.root = root
        self._waiting = waiting
        _make_folder(root)

    def path(self, name: str, inputs: Any) -> Path:
        """Where a folder is or would be.

        Args:
            name: a word for people.
            inputs: all that its contents depend on; anything that JSON can hold.
        """
        key = hashlib.sha256(msgspec.json.encode(inputs, order="sorted")).hexdigest()
        return self.root / f"{name}-{key[:_KEY_DIGITS]}"

    def made(self, name: str, inputs: Any, make: Callable[[Path], None], *, anew: bool = False, keep: int = 2) -> Path:
        """A folder, made if it is not there.

        Args:
            name: see `path`.
            inputs: see `path`.
            make: fills a new, empty folder.
            anew: make it even if it is there.
            keep: how many of that name stay when one is made: those used last.

        Raises:
            EnclaveUnavailable: there is no room for it.
        """
        folder = self.path(name, inputs)
        if folder.is_dir() and not anew:
            with contextlib.suppress(OSError):
                os.utime(folder)
            return folder
        with locked(self.root / "lock", self._waiting):
            # Another process may have made it meanwhile.
            if anew or not folder.is_dir():
                self._make(folder, make)
                self._remove_others(name, folder, keep - 1)
        return folder

    def _remove_others(self, name: str, folder: Path, keep: int) -> None:
        others = set(self.root.glob(f"{name}-{'[0-9a-f]' * _KEY_DIGITS}")) - {folder}
        for other in sorted(others, key=lambda path: path.stat().st_mtime_ns, reverse=True)[keep:]:
            shutil.rmtree(other, ignore_errors=True)

    def _make(self, folder: Path, make: Callable[[Path], None]) -> None:
        # The lock is ours: what is unfinished here was left by a process that was killed.
        for left in self.root.glob(f"{_NEW}*"):
            shutil.rmtree(left, ignore_errors=True)
        new = self.root / f"{_NEW}{os.getpid()}"
        try:
            new.mkdir(mode=0o755)
            make(new)
            shutil.rmtree(folder, ignore_errors=True)
            new.rename(folder)
        except OSError as error:
            raise EnclaveUnavailable(
                f"{folder}: cannot be made: {error.strerror or error}", "make room, or set CLOISTER_CACHE"
            ) from error
        finally:
            shutil.rmtree(new, ignore_errors=True)


def digest_of_folder(folder: Path) -> str:
    """SHA-256 over the names and contents of all files below a folder."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        whole.update(path.read_bytes())
    return whole.hexdigest()
