"""Archives in cpio's `newc` form, as Linux unpacks them at boot. The same files give the same bytes."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from typing import BinaryIO, NamedTuple

__all__ = ["Entry", "folder", "link", "program", "write_archive"]

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"


class Entry(NamedTuple):
    """A file, folder or link: its mode as `stat` has it, and its bytes (of a link: where it leads)."""

    mode: int
    data: bytes = b""


def folder() -> Entry:
    """A folder."""
    return Entry(stat.S_IFDIR | 0o755)


def program(data: bytes) -> Entry:
    """A file that everybody may read and run."""
    return Entry(stat.S_IFREG | 0o755, data)


def link(target: str) -> Entry:
    """A symbolic link."""
    return Entry(stat.S_IFLNK | 0o777, target.encode())


def write_archive(stream: BinaryIO, entries: Mapping[str, Entry]) -> None:
    """Write an archive; all belongs to root and is of 1970.

    Args:
        stream: where it goes.
        entries: by their path, without a slash at its start. Folders on the way to them are added.
    """
    parents = {str(parent) for name in entries for parent in _parents(name)}
    whole = {**dict.fromkeys(parents, folder()), **entries}
    for number, name in enumerate(sorted(whole), start=1):
        _write_entry(stream, number, name, whole[name])
    _write_entry(stream, 0, _TRAILER, Entry(0))


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


def _write_entry(stream: BinaryIO, number: int, name: str, entry: Entry) -> None:
    path = name.encode() + b"\0"
    n_links = 2 if stat.S_ISDIR(entry.mode) else 1
    # inode, mode, user, group, links, time, size, device (2), device that it is (2), size of the name, checksum
    numbers = (number, entry.mode, 0, 0, n_links, 0, len(entry.data), 0, 0, 0, 0, len(path), 0)
    head = _MAGIC + b"".join(b"%08X" % value for value in numbers) + path
    stream.write(_padded(head) + _padded(entry.data))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
