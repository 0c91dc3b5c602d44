"""What the host asks of a machine's Linux: lines over the control port. See `guest/init` for the other side."""

from __future__ import annotations

import base64
import contextlib
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

from cloister.errors import EnclaveError, EnclaveUnavailable

__all__ = ["Control", "control", "make_pipes"]

_PIECE_BYTES = 1 << 16


def make_pipes(folder: Path) -> None:
    """Make the pipes that QEMU opens as `control`. They are always open there, so the guest never sees an end."""
    for name in ("control.in", "control.out"):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name, 0o600)


class Control:
    """The control port, open."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests = requests
        self._answers = answers
        self._seen = b""
        with contextlib.suppress(BlockingIOError):  # what somebody else asked for and did not wait for
            while os.read(answers, _PIECE_BYTES):
                pass

    def ask(self, word: str, rest: str = "", *, seconds: float) -> tuple[int, str]:
        """Ask for something, and wait for the answer.

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
        os.write(self._requests, f"{word} {rest}\n".encode())
        while b"\n" not in self._seen:
            self._more(word, end)
        line, _, self._seen = self._seen.partition(b"\n")
        status, n_bytes = map(int, line.split())
        while len(self._seen) < n_bytes:
            self._more(word, end)
        said, self._seen = self._seen[:n_bytes], self._seen[n_bytes:]
        return status, said.decode("utf-8", "replace").strip()

    def shell(self, command: str, *, seconds: float) -> tuple[int, str]:
        """Run a command of the shell as root. See `ask`."""
        return self.ask("shell", base64.b64encode(command.encode()).decode(), seconds=seconds)

    def _more(self, word: str, end: float) -> None:
        readable, _, _ = select.select([self._answers], [], [], max(0.0, end - time.monotonic()))
        if not readable:
            raise EnclaveError(f"the machine's Linux does not answer `{word}`")
        piece = os.read(self._answers, _PIECE_BYTES)
        if not piece:
            raise EnclaveError(f"the machine ended during `{word}`")
        self._seen += piece


@contextlib.contextmanager
def control(folder: Path) -> Iterator[Control]:
    """The control port of a folder's machine.

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
