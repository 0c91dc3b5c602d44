"""Loading files of torch without unpickling anything but tensors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

__all__ = ["tensors_only"]

_VARIABLE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


@contextlib.contextmanager
def tensors_only() -> Iterator[None]:
    """Make torch refuse every pickled object but tensors, also where the caller of `torch.load` asks otherwise.

    `torch.export.load` asks for unrestricted unpickling when the restricted one fails; torch offers an environment
    variable against it, and nothing else.
    """
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before
