"""How long work tells its caller how far it is: the library itself never prints."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress"]


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
