"""What the attacks take: arrays that are checked once, by name, before anything is computed from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.errors import InputError

__all__ = [
    "Bools",
    "Floats",
    "Labels",
    "finite",
    "labels_below",
    "logits_of",
    "members_of",
    "memberships_of",
    "probabilities",
    "scores_of",
]

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

#: Differences of two numbers below it are numbers.
_LARGEST = 1e300


def finite(values: npt.ArrayLike, name: str, shape: tuple[int | None, ...]) -> Floats:
    """Numbers as float64.

    Args:
        values: integers or floating point.
        name: for messages.
        shape: expected; None for any size of at least 1.

    Raises:
        InputError: another shape or dtype, NaN, infinite, or beyond 1e300.
    """
    array = np.asarray(values)
    _check_shape(array, name, shape)
    if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        raise InputError(f"{name}: expected real numbers, but got {array.dtype}")
    numbers = array.astype(np.float64)
    wrong = ~(np.abs(numbers) <= _LARGEST)
    if wrong.any():
        at = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise InputError(
            f"{name}: expected finite numbers of at most 1e300, but {int(wrong.sum())} of {wrong.size} are not: "
            f"{numbers[at]} at {list(at)}",
            "a class that a release hides needs a finite logit, for example log(1e-12)",
        )
    return numbers


def scores_of(scores: npt.ArrayLike, name: str = "scores", *, n: int | None = None) -> Floats:
    """Scores (N,) as float64; NaN and infinity are refused."""
    return finite(scores, name, (n,))


def logits_of(logits: npt.ArrayLike, name: str = "logits", *, n: int | None = None) -> Floats:
    """Logits (N, K) as float64, of at least two classes."""
    numbers = finite(logits, name, (n, None))
    if numbers.shape[1] < 2:
        raise InputError(f"{name}: expected at least 2 classes, but got shape {numbers.shape}")
    return numbers


def probabilities(values: npt.ArrayLike, name: str, shape: tuple[int | None, ...]) -> Floats:
    """Numbers in [0, 1] as float64."""
    numbers = finite(values, name, shape)
    if numbers.min() < 0 or numbers.max() > 1:
        raise InputError(
            f"{name}: expected probabilities in [0, 1], but got values in [{numbers.min():g}, {numbers.max():g}]",
            "`signals.confidence` makes them from logits",
        )
    return numbers


def labels_below(labels: npt.ArrayLike, n_classes: int, name: str, shape: tuple[int | None, ...]) -> Labels:
    """Labels in [0, n_classes) as int64."""
    array = np.asarray(labels)
    _check_shape(array, name, shape)
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{name}: expected integers, but got {array.dtype}")
    if array.min() < 0 or array.max() >= n_classes:
        raise InputError(f"{name}: expected labels in [0, {n_classes}), but got [{array.min()}, {array.max()}]")
    return array.astype(np.int64)


def members_of(is_member: npt.ArrayLike, n: int, name: str = "is_member", *, at_least: int = 2) -> Bools:
    """Membership (N,) as bool, with at least two of each kind.

    Raises:
        InputError: another shape or dtype, or too few of one kind.
    """
    array = _bools(is_member, name, (n,))
    n_members = int(array.sum())
    if min(n_members, n - n_members) < at_least:
        raise InputError(
            f"{name}: expected at least {at_least} members and {at_least} non-members, "
            f"but got {n_members} and {n - n_members}"
        )
    return array


def memberships_of(is_in: npt.ArrayLike, shape: tuple[int, int], name: str = "is_in") -> Bools:
    """Which of M models was trained on which of N samples, (M, N) as bool."""
    return _bools(is_in, name, shape)


def _bools(values: npt.ArrayLike, name: str, shape: tuple[int | None, ...]) -> Bools:
    array = np.asarray(values)
    _check_shape(array, name, shape)
    if array.dtype != np.bool_:
        raise InputError(f"{name}: expected bool, but got {array.dtype}", "compare, for example `indices < n_members`")
    return array


def _check_shape(array: npt.NDArray[Any], name: str, shape: tuple[int | None, ...]) -> None:
    agrees = array.ndim == len(shape) and all(
        size == wanted if wanted is not None else size > 0 for size, wanted in zip(array.shape, shape, strict=True)
    )
    if not agrees or array.size == 0:
        wanted = ", ".join("n" if size is None else str(size) for size in shape)
        raise InputError(f"{name}: expected shape ({wanted}), none of it 0, but got {array.shape}")
