"""Sizes in bytes, as text."""

from __future__ import annotations

import re

from cloister.errors import UserError

__all__ = ["format_bytes", "parse_bytes"]

_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def parse_bytes(text: str) -> int:
    """Read a size such as `262144`, `256KiB` or `1.5 MiB`.

    Raises:
        UserError: it is no such text, or not a whole positive number of bytes.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match and match[2] in _UNITS:
        size = float(match[1]) * _UNITS[match[2]]
        if size >= 1 and size == int(size):
            return int(size)
    raise UserError(f"size: expected something like `8MiB`, but got `{text}`", "units: B, KiB, MiB, GiB, KB, MB, GB")


def format_bytes(size: int) -> str:
    """A size to read: `512 B`, `14.2 KiB`, `1.00 MiB`."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}" if size < 1000 * unit else f"{size / unit:.0f} {name}"
    return f"{size} B"
