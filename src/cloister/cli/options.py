"""Options and kinds of values that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cloister.enclave.connect import ENCLAVES, is_enclave
from cloister.errors import UserError
from cloister.units import parse_bytes

__all__ = ["BUDGET", "FILE", "SEED", "SHAPE", "enclave", "force", "output_format"]

_F = TypeVar("_F", bound=Callable[..., Any])

#: A file or folder; what reads or writes it says what is wrong with it.
FILE = click.Path(path_type=Path)
SEED = click.IntRange(0)


class _Budget(click.ParamType["int | None"]):
    """A size in bytes, or `none` for no limit."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Read it."""
        if not isinstance(value, str):
            return int(value)
        try:
            return None if value == "none" else parse_bytes(value)
        except UserError as error:
            self.fail(f"{error} ({error.hint})", param, ctx)


class _Shape(click.ParamType["tuple[int, ...]"]):
    """A shape such as `3,32,32`."""

    name = "shape"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Read it."""
        if isinstance(value, tuple):
            return value
        sizes = str(value).replace("x", ",").split(",")
        if not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
            self.fail(f"expected positive sizes such as 3,32,32, but got {value!r}", param, ctx)
        return tuple(int(size) for size in sizes)


BUDGET = _Budget()
SHAPE = _Shape()


def output_format(command: _F) -> _F:
    """`-f`: what is printed on stdout."""
    return click.option(
        "-f",
        "--format",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="What to print on stdout.",
    )(command)


def force(command: _F) -> _F:
    """`--force`: overwrite."""
    return click.option("--force", is_flag=True, help="Overwrite an output that exists already.")(command)


def enclave(command: _F) -> _F:
    """`--enclave`: where the inside runs."""
    return click.option(
        "--enclave",
        default="local",
        show_default=True,
        metavar="NAME",
        callback=_known_enclave,
        help="Where the inside runs: " + "; ".join(f"`{name}`, {what}" for name, what in ENCLAVES.items()) + ".",
    )(command)


def _known_enclave(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not is_enclave(value):
        raise click.BadParameter(f"expected one of {', '.join(ENCLAVES)}, but got `{value}`", ctx, param)
    return value
