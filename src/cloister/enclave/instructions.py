"""Which instruction sets the kernels may use: all that the machine has, or those of a smaller machine."""

from __future__ import annotations

import functools
import os
import warnings
from typing import Literal

from cloister.enclave.core import load_library
from cloister.errors import EnclaveUnavailable, UserError

__all__ = ["VARIABLE", "allowed_sets", "arm_march", "best_set"]

VARIABLE = "CLOISTER_INSTRUCTIONS"
#: Kernels of int8 convolutions, best first; the place of each is its bit in `native/core/kernels/sets.h`.
_NAMES = ("amx", "avx512", "avxvnni", "avx2", "i8mm", "dot", "neon")
_PLAIN = "plain"
#: For Arm the compiler decides, by its `-march`.
_MARCHES = {"i8mm": "armv8.2-a+dotprod+i8mm", "dot": "armv8.2-a+dotprod", "neon": "armv8-a"}
_ALL = (1 << len(_NAMES)) - 1


def best_set(sets: int = _ALL, *, bits: Literal[8, 32] = 8) -> str:
    """The best kernels that this machine has.

    Args:
        sets: as `allowed_sets` gives them.
        bits: 8 for those of int8, 32 for those of float32.

    Returns:
        `amx`, `avx512`, `avxvnni`, `avx2`, `i8mm`, `dot`, `neon` or `plain`.

    Raises:
        EnclaveUnavailable: the interpreter's library is missing.
    """
    name: bytes = load_library().cl_core_kernel(bits, sets)
    return name.decode()


def allowed_sets() -> int:
    """What `$CLOISTER_INSTRUCTIONS` allows, as bits: the set that it names and lesser ones; everything if it is unset.

    Where the machine does not have the set that is named, the best lesser one is used with a warning; with a `!` behind
    the name that is refused.

    Raises:
        UserError: there is no such set.
        EnclaveUnavailable: this machine does not have it, and it was to be that one.
    """
    return _read(os.environ.get(VARIABLE, ""))


def arm_march() -> str | None:
    """What gcc's `-march` calls the set that `$CLOISTER_INSTRUCTIONS` names, or None if it names none of Arm."""
    return _MARCHES.get(os.environ.get(VARIABLE, "").removesuffix("!"))


@functools.cache
def _read(wanted: str) -> int:
    if not wanted:
        return _ALL
    name = wanted.removesuffix("!")
    if name not in (*_NAMES, _PLAIN):
        known = ", ".join((*_NAMES, _PLAIN))
        raise UserError(f"{VARIABLE}={wanted}: there is no such instruction set", f"set it to one of {known}")
    sets = _ALL & ~((1 << _NAMES.index(name)) - 1) if name != _PLAIN else 0
    if (best := best_set(sets)) != name:
        missing = f"{VARIABLE}={wanted}: this machine does not have {name}"
        if wanted != name:
            raise EnclaveUnavailable(missing, f"leave out the `!` to use {best}")
        warnings.warn(f"{missing}; {best} is used", stacklevel=2)
    return sets
