"""Output files: what cannot be written is refused before any work; what is written is whole or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from cloister.errors import OutputExists, UserError

__all__ = ["check_output", "refuse_existing", "write_whole", "written_whole"]


def refuse_existing(path: Path, *, force: bool) -> None:
    """Refuse to overwrite.

    Raises:
        OutputExists: it is there and `force` is not set.
    """
    if not force and os.path.lexists(path):
        raise OutputExists(f"`{path}` exists already", "give another name, or overwrite it with --force")


def check_output(path: Path, *, force: bool) -> None:
    """Refuse a file that could not be written, before any work is done for it.

    Raises:
        OutputExists: it is there and `force` is not set.
        UserError: it is a folder, or its folder is not there or does not take it.
    """
    if not path.name or os.path.isdir(path):
        raise UserError(f"expected the name of a file to write, but got the folder `{path}`")
    refuse_existing(path, force=force)
    with _told(path):
        probe = _beside(path)
        probe.touch(exist_ok=False)
        probe.unlink()


@contextlib.contextmanager
def written_whole(path: Path, *, force: bool) -> Iterator[Path]:
    """A temporary file's name in the same folder; it takes the place of `path` if the block succeeds.

    Args:
        path: the file.
        force: overwrite an existing file.

    Raises:
        OutputExists: the file exists and `force` is not set.
        UserError: it cannot be written.
    """
    check_output(path, force=force)
    temporary = _beside(path)
    try:
        with _told(path):
            yield temporary
            refuse_existing(path, force=force)
            temporary.replace(path)
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes, *, force: bool) -> None:
    """Write a file, all of it or nothing.

    Raises:
        OutputExists: the file exists and `force` is not set.
        UserError: it cannot be written.
    """
    with written_whole(path, force=force) as temporary, temporary.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Failures of the file system as the user's."""
    try:
        yield
    except OSError as error:
        hint = f"make the folder `{path.parent}` first" if isinstance(error, FileNotFoundError) else None
        raise UserError(f"`{path}` cannot be written: {error.strerror}", hint) from error


def _sync_folder(folder: Path) -> None:
    """Makes the new name last through a power failure too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
