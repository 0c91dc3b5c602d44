"""What was fetched and built, kept by what it was made from; nothing half-made is ever found there."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from cloister.errors import EnclaveUnavailable, UserError

__all__ = ["Cache", "cache_folder", "digest_of_folder", "locked"]

_NEW = ".new-"
_KEY_DIGITS = 16


def cache_folder() -> Path:
    """Where it all lies: `$CLOISTER_CACHE`, else `cloister` in `$XDG_CACHE_HOME`, else `~/.cache/cloister`.

    Raises:
        UserError: it cannot be made.
    """
    if own := os.environ.get("CLOISTER_CACHE"):
        folder = Path(own)
    elif xdg := os.environ.get("XDG_CACHE_HOME"):
        folder = Path(xdg) / "cloister"
    else:
        folder = Path.home() / ".cache" / "cloister"
    folder = folder.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "set CLOISTER_CACHE to a folder that you can write to"
        raise UserError(f"{folder}: cannot be made: {error.strerror}", hint) from error
    return folder


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock file; whoever else wants it waits.

    Args:
        path: the lock file; made if it is not there.
        waiting: told who holds it, once, before waiting.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            waiting(f"waiting for process {file.read().strip() or '?'}")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
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
        root.mkdir(parents=True, exist_ok=True)

    def path(self, name: str, inputs: Any) -> Path:
        """Where a folder is or would be.

        Args:
            name: a word for people.
            inputs: all that its contents depend on; anything that JSON can hold.
        """
        key = hashlib.sha256(msgspec.json.encode(inputs, order="sorted")).hexdigest()
        return self.root / f"{name}-{key[:_KEY_DIGITS]}"

    def made(
        self, name: str, inputs: Any, make: Callable[[Path], None], *, anew: bool = False, alone: bool = False
    ) -> Path:
        """A folder, made if it is not there.

        Args:
            name: see `path`.
            inputs: see `path`.
            make: fills a new, empty folder.
            anew: make it even if it is there.
            alone: remove others of that name: it is large, and whoever misses one can do without.

        Raises:
            EnclaveUnavailable: there is no room for it.
        """
        folder = self.path(name, inputs)
        if folder.is_dir() and not anew:
            return folder
        with locked(self.root / "lock", self._waiting):
            # Another process may have made it meanwhile.
            if anew or not folder.is_dir():
                self._make(folder, make)
                if alone:
                    self._remove_others(name, folder)
        return folder

    def _remove_others(self, name: str, folder: Path) -> None:
        for other in self.root.glob(f"{name}-{'[0-9a-f]' * _KEY_DIGITS}"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)

    def _make(self, folder: Path, make: Callable[[Path], None]) -> None:
        # The lock is ours: what is unfinished here was left by a process that was killed.
        for left in self.root.glob(f"{_NEW}*"):
            shutil.rmtree(left, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix=_NEW, dir=self.root))
        try:
            new.chmod(0o755)
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
