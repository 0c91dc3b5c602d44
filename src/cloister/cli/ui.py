"""What the terminal shows. Nothing else in Cloister prints: data goes to stdout, talk to stderr."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec
from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from cloister.errors import CloisterError, UnsupportedModel

if TYPE_CHECKING:
    from rich import progress as rich_progress

    from cloister.progress import Progress

__all__ = [
    "ago",
    "failed",
    "fields",
    "json",
    "lines",
    "next_steps",
    "number",
    "percent",
    "prepare",
    "progress",
    "say",
    "table",
    "traceback_asked",
    "usage",
]

#: Columns where the output is no terminal and COLUMNS is not set: a log has no width of its own.
_WIDTH_OF_FILES = 120
#: Without a terminal, progress is a line in a log: not more often than this.
_LOG_EVERY_S = 10.0
_STATES = {"ok": "green", "warn": "yellow", "fail": "red", "inside": "cyan", "outside": "dim", "torch": "dim"}


def _console(*, stderr: bool) -> Console:
    """A console for the stream as it is now. Its colours follow the terminal and NO_COLOR."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _WIDTH_OF_FILES
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def prepare() -> None:
    """What the terminal cannot show comes as an escape, not as an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _clean(text: str) -> str:
    """The text without what would steer a terminal: names in a bundle are its maker's choice."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


# --- Data ----------------------------------------------------------------------------------------------------------


def json(document: msgspec.Struct) -> None:
    """Print a document as JSON, in UTF-8 whatever the terminal's encoding is."""
    sys.stdout.flush()
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    sys.stdout.buffer.flush()


def lines(texts: Sequence[str]) -> None:
    """Print lines as they are, but for what would steer a terminal."""
    sys.stdout.write("".join(f"{_clean(text)}\n" for text in texts))


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: str = "", stderr: bool = False
) -> None:
    """Print a table with a title.

    Args:
        title: a few words above it; none if empty.
        columns: their heads.
        rows: cells as text; a cell such as `inside` or `ok` gets its colour.
        right: heads of the columns to align to the right, separated by commas.
        stderr: print it as talk.
    """
    aligned = {name.strip() for name in right.split(",")}
    heads = [
        Column(name, justify="right" if name in aligned else "left", header_style="dim", overflow="fold")
        for name in columns
    ]
    view = Table(*heads, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    view.border_style = "dim"
    for row in rows:
        view.add_row(*(Text(_clean(cell), style=_STATES.get(cell, "")) for cell in row))
    _titled(title, view, stderr=stderr)


def fields(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print names with values, one pair a line, below a title."""
    view = Table(Column(style="dim", no_wrap=True), Column(overflow="fold"), box=None, show_header=False)
    view.padding = (0, 2, 0, 0)
    view.pad_edge = False
    for name, value in rows:
        view.add_row(name, Text(_clean(value)))
    _titled(title, view, stderr=False)


def _titled(title: str, view: Table, *, stderr: bool) -> None:
    console = _console(stderr=stderr)
    with console.capture() as captured:
        if title:
            console.print(Text(_clean(title), style="bold"))
        console.print(view)
    # Tables pad their last column; files and clipboards are better off without that.
    lines = [text.rstrip() for text in captured.get().splitlines()]
    console.file.write("\n".join(lines) + "\n\n")


def next_steps(title: str, commands: Sequence[Sequence[str]]) -> None:
    """Name commands to go on with, word by word: quoted and never wrapped, so that they can be copied."""
    console = _console(stderr=False)
    console.print(Text(title, style="bold"))
    for words in commands:
        console.print(Text("  " + _clean(shlex.join(words)), style="cyan"), soft_wrap=True)


def percent(part: float) -> str:
    """A share in [0, 1] as text: `97.22 %`."""
    return f"{part * 100:.2f} %"


def number(value: int) -> str:
    """A count with its thousands set apart."""
    return f"{value:,}"


def ago(seconds: float) -> str:
    """A span of time: `9 s`, `2 min 5 s`, `1 h 3 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


# --- Talk ----------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Tell the user something that is not data."""
    console = _console(stderr=True)
    console.print(Text(_clean(text), style="dim"), soft_wrap=not console.is_terminal)


def usage(text: str) -> None:
    """Show how to use a command, to somebody who gave none."""
    sys.stderr.write(text + "\n")


def traceback_asked() -> bool:
    """Whether CLOISTER_TRACEBACK asks for tracebacks."""
    return os.environ.get("CLOISTER_TRACEBACK", "") not in ("", "0")


def failed(error: BaseException, message: str | None = None, hint: str | None = None) -> None:
    """Report an error: what was wrong, the places of it, and what to do.

    Args:
        error: what was raised.
        message: instead of the error's own text.
        hint: instead of the error's own hint.
    """
    if traceback_asked():
        sys.stderr.write("".join(traceback.format_exception(error)) + "\n")
    if isinstance(error, CloisterError):
        hint = hint or error.hint
    console = _console(stderr=True)
    # Words wrap on a terminal; a log keeps a message in one line, so that it can be searched.
    whole = not console.is_terminal
    console.print(
        Text.assemble("cloister: ", ("error", "bold red"), f": {_clean(message or str(error))}"), soft_wrap=whole
    )
    if isinstance(error, UnsupportedModel) and error.problems:
        console.print()
        table("", ["layer", "operator", "reason"], error.problems, stderr=True)
    elif hint:
        console.print()
    if hint:
        console.print(Text.assemble(("hint", "bold"), f": {_clean(hint)}"), soft_wrap=whole)


# --- Progress ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """What long work reports to: a bar on a terminal, otherwise a line now and then.

    CLOISTER_NO_PROGRESS turns it off.
    """
    if os.environ.get("CLOISTER_NO_PROGRESS", "") not in ("", "0"):
        yield _Silent()
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _bar() as bar:
            yield bar
    else:
        yield _Log()


class _Silent:
    def update(self, done: int, total: int, text: str) -> None:
        """Ignore it."""


class _Log:
    """A line for a log: seldom, and each complete in itself."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._first_done: int | None = None

    def update(self, done: int, total: int, text: str) -> None:
        """Print a line, unless one was printed a short time ago."""
        now = time.monotonic()
        if self._first_done is None or done < self._first_done:
            self._start, self._first_done = now, done
        if now - self._last < _LOG_EVERY_S:
            return
        self._last = now
        n_new = done - self._first_done
        left = f", about {ago((now - self._start) / n_new * (total - done))} left" if n_new else ""
        say(f"{text}: {done} of {total}{left}")


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    from rich import progress as rich_progress

    # The console keeps today's stderr: what redirects it for the sake of quiet must not swallow the bar.
    view = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(bar_width=24),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeRemainingColumn(compact=True),
        console=_console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with view:
        yield _Bar(view)


class _Bar:
    """One bar at a time: new work takes the place of the old."""

    def __init__(self, view: rich_progress.Progress) -> None:
        self._view = view
        self._task: rich_progress.TaskID | None = None
        self._total = 0

    def update(self, done: int, total: int, text: str) -> None:
        """Move the bar."""
        if self._task is None or total != self._total:
            if self._task is not None:
                self._view.remove_task(self._task)
            self._task = self._view.add_task(text, total=total, completed=done)
            self._total = total
        self._view.update(self._task, completed=done, description=text)
