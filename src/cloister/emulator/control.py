"""What the host asks of a machine's Linux: lines over the control line. See `guest/init` for the other side."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import secrets
import select
import time
from collections.abc import Iterator
from pathlib import Path

from cloister.errors import EnclaveError, EnclaveUnavailable

__all__ = ["Control", "control", "make_pipes"]

_PIECE_BYTES = 1 << 16
_PING_SECONDS = 0.5


class NoAnswer(EnclaveError):
    """A machine's Linux did not answer in time."""


def make_pipes(folder: Path) -> None:
    """Make the pipes that QEMU opens as `control`. They are always open there, so the guest never sees an end."""
    for name in ("control.in", "control.out"):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name, 0o600)


class Control:
    """The control line, open."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests = requests
        self._answers = answers
        self._seen = b""

    def ask(self, word: str, rest: str = "", *, seconds: float) -> tuple[int, str]:
        """Ask for something, and wait for the answer.

        What comes before it is skipped: answers that nobody waited for, what firmware wrote to the line, an echo.

        Args:
            word: `ping`, `go`, `stop` or `shell`.
            rest: what it needs, in one line.
            seconds: how long to wait.

        Returns:
            Exit status and output.

        Raises:
            EnclaveError: no answer comes.
        """
        end = time.monotonic() + seconds
        token = secrets.token_hex(8)
        os.write(self._requests, f"{token} {word} {rest}\n".encode())
        answer = re.compile(rf"{token} (\d+) (\d+)".encode())
        while not (found := answer.fullmatch(self._line(word, end))):
            pass
        status, n_bytes = map(int, found.groups())
        while len(self._seen) < n_bytes:
            self._more(word, end)
        said, self._seen = self._seen[:n_bytes], self._seen[n_bytes:]
        return status, said.decode("utf-8", "replace").strip()

    def wait(self, *, seconds: float) -> None:
        """Wait for the machine's Linux: it may lose what is asked before it listens, so it is asked again and again.

        Raises:
            EnclaveError: it does not come up in time.
        """
        end = time.monotonic() + seconds
        while True:
            try:
                self.ask("ping", seconds=_PING_SECONDS)
                return
            except NoAnswer:
                if time.monotonic() > end:
                    raise

    def shell(self, command: str, *, seconds: float) -> tuple[int, str]:
        """Run a command of the shell as root. See `ask`."""
        return self.ask("shell", base64.b64encode(command.encode()).decode(), seconds=seconds)

    def _line(self, word: str, end: float) -> bytes:
        while b"\n" not in self._seen:
            self._more(word, end)
        line, _, self._seen = self._seen.partition(b"\n")
        return line

    def _more(self, word: str, end: float) -> None:
        readable, _, _ = select.select([self._answers], [], [], max(0.0, end - time.monotonic()))
        if not readable:
            raise NoAnswer(f"the machine's Linux does not answer `{word}`")
        piece = os.read(self._answers, _PIECE_BYTES)
        if not piece:
            raise EnclaveError(f"the machine ended during `{word}`")
        self._seen += piece


@contextlib.contextmanager
def control(folder: Path) -> Iterator[Control]:
    """The control line of a folder's machine.

    Raises:
        EnclaveUnavailable: no machine runs there.
    """
    with contextlib.ExitStack() as undo:
        try:
            requests = os.open(folder / "control.in", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            undo.callback(os.close, requests)
            answers = os.open(folder / "control.out", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            undo.callback(os.close, answers)
        except OSError as error:
            raise EnclaveUnavailable("the emulator is not running", "cloister emulator up") from error
        yield Control(requests, answers)
