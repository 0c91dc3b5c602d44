"""Writing results: a file appears whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cloister.cli.options import refuse_existing
from cloister.errors import UserError

__all__ = ["write_atomically"]


def write_atomically(path: Path, data: bytes, *, force: bool) -> None:
    """Write a file under another name first, then move it into place.

    Args:
        path: the file.
        data: all of it.
        force: overwrite an existing file.

    Raises:
        OutputExists: the file exists and `force` is not set.
        UserError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        refuse_existing(path, force=force)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
