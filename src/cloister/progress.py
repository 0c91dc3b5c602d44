"""How long work tells its caller how far it is: the library itself never prints."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Named", "Progress"]


class Progress(Protocol):
    """Anything with an `update` method, for example a progress bar of the command line."""

    def update(self, done: int, total: int, text: str) -> None:
        """Take note of the state of the work.

        Args:
            done: steps finished, in [0, total].
            total: steps in all, at least 1.
            text: what is being done, a few words in lower case.
        """
        ...


class Named:
    """Says of which part of the work progress is.

    Args:
        progress: who is told; nobody if None.
        name: of the part.
    """

    def __init__(self, progress: Progress | None, name: str) -> None:
        self._progress, self._name = progress, name

    def update(self, done: int, total: int, text: str) -> None:
        """Pass it on with the name before the text."""
        if self._progress is not None:
            self._progress.update(done, total, f"{self._name}, {text}")
