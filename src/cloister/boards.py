"""Board profiles: what the TEE of a board can hold, and what its protection is worth.

The profiles that come with the package are in `boards.toml`; another file of the same form describes another board.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from cloister.errors import UserError

__all__ = ["SUITES", "TA_BYTES", "Board", "Suite", "load_board", "load_boards"]

Suite = Literal["AES-256-GCM", "ChaCha20-Poly1305"]
#: Suites by their number in bundles and on the wire.
SUITES: dict[Suite, int] = {"AES-256-GCM": 1, "ChaCha20-Poly1305": 2}


#: What a plan leaves free of the heap. One session needs nothing of it: the 4096 bytes of state in `inside_bytes` cover
#: its own, and `load` frees its first copy of the program before it takes the inside's memory (on OP-TEE 4.5 a plan of
#: the whole heap loads). It is for the sessions of others, who share the heap and only ask who the enclave is.
TA_BYTES = 16384

_Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")]
_Word = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]


class Board(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A board with OP-TEE.

    Attributes:
        name: as `--board` takes it: at most 31 lower-case letters, digits and hyphens.
        title: for people.
        platform: OP-TEE's name for it (`PLATFORM=`).
        heap_bytes: heap of the trusted application, at least 64 KiB.
        stack_bytes: its stack.
        shared_bytes: what the parameters of one call may have together, each rounded up to 4096.
        march: instruction set of its cores, as gcc's `-march` takes it.
        suite: the cipher that its cores can afford.
        secure_ram: the normal world cannot read the memory of the TEE.
        rpmb: storage that cannot be rolled back.
        secure_boot: only signed firmware starts.
        emulated: a program that acts as a board.
    """

    name: _Name
    title: str
    platform: _Word
    heap_bytes: Annotated[int, msgspec.Meta(ge=1 << 16, lt=1 << 32)]
    stack_bytes: Annotated[int, msgspec.Meta(ge=1 << 13, lt=1 << 32)]
    shared_bytes: Annotated[int, msgspec.Meta(ge=1 << 16, lt=1 << 32)]
    march: _Word
    suite: Suite
    secure_ram: bool
    rpmb: bool
    secure_boot: bool
    emulated: bool

    @property
    def inside_bytes(self) -> int:
        """The most inside memory that a plan may need here."""
        return self.heap_bytes - TA_BYTES

    @property
    def weaknesses(self) -> tuple[str, ...]:
        """Why the inside is not safe on this board from whoever has it; empty if nothing is known."""
        found = {
            "emulated: whoever runs the emulator reads all of its memory": self.emulated,
            "no secure RAM: the normal world can read the inside": not self.secure_ram,
            "no secure boot: whoever has the board can replace its firmware": not self.secure_boot,
        }
        return tuple(text for text, holds in found.items() if holds)


def load_boards(path: Path | None = None) -> dict[str, Board]:
    """The boards of a file, by name; those of the package for None.

    Raises:
        UserError: the file cannot be read, or breaks the form; the message says where.
    """
    source = str(path or "boards.toml")
    try:
        text = (path or resources.files("cloister") / "boards.toml").read_text(encoding="utf-8")
        tables = tomllib.loads(text)
        return {name: msgspec.convert(dict(name=name, **table), Board) for name, table in tables.items()}
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError, TypeError) as error:
        raise UserError(
            f"{source}: expected board profiles: {error}", "docs/guides/add-a-board.md shows one"
        ) from error


def load_board(name: str) -> Board:
    """A board of the package by its name, or the only one of a file.

    Args:
        name: `rpi3`, or the path of a `.toml` file.

    Raises:
        UserError: there is none.
    """
    if not name.endswith(".toml"):
        boards = load_boards()
        if name not in boards:
            raise UserError(
                f"there is no board `{name}`", f"known are {', '.join(boards)}, or a .toml file with a profile"
            )
        return boards[name]
    boards = load_boards(Path(name))
    if len(boards) != 1:
        raise UserError(f"{name}: expected one board, but got {len(boards)}")
    return next(iter(boards.values()))
