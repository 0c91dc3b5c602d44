"""S and T: which members and non-members are measured on, and whether they are what they should be."""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np
import numpy.typing as npt

from cloister.errors import DataError
from cloister.target import Pair, Target

__all__ = ["Sets", "choose_sets", "hash_pair", "image_hashes"]

#: Two of each for each half.
_FEWEST = 4
_Indices = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sets:
    """S and T as indices into a target's members and non-members.

    Attributes:
        members: all of the target's.
        nonmembers: all of the target's.
        s: (n,) into the members.
        t: (n,) into the non-members.
        spare: into the non-members: those that are neither in T nor members, in random order.
        warnings: what is wrong with them, but not so that nothing can be measured.
    """

    members: Pair
    nonmembers: Pair
    s: _Indices
    t: _Indices
    spare: _Indices
    warnings: tuple[str, ...]

    def pair(self) -> Pair:
        """S, then T."""
        (x_members, y_members), (x_nonmembers, y_nonmembers) = self.members, self.nonmembers
        images = np.concatenate([x_members[self.s], x_nonmembers[self.t]])
        return images, np.concatenate([y_members[self.s], y_nonmembers[self.t]]).astype(np.int64)

    @functools.cached_property
    def members_sha256(self) -> str:
        """Hash of S."""
        return hash_pair((self.members[0][self.s], self.members[1][self.s]))

    @functools.cached_property
    def nonmembers_sha256(self) -> str:
        """Hash of T."""
        return hash_pair((self.nonmembers[0][self.t], self.nonmembers[1][self.t]))

    @functools.cached_property
    def hashes(self) -> frozenset[bytes]:
        """Of the images of S and T."""
        return frozenset(image_hashes(self.pair()[0]))


def choose_sets(target: Target, *, n_samples: int | None, seed: int) -> Sets:
    """Draw S and T, equally many, from a target's members and non-members.

    Non-members whose image is a member's, too, are left out, with a warning.

    Args:
        target: with members and non-members.
        n_samples: size of each, at least 4; as many as there are of both, if None.
        seed: of the choice.

    Raises:
        DataError: no members or non-members, too few, or only such that are members.
    """
    members, nonmembers = _both(target)
    others, warnings = _without_members(target.name, members, nonmembers)
    n = min(len(members[1]), len(others)) if n_samples is None else n_samples
    if n < _FEWEST or n > min(len(members[1]), len(others)):
        raise DataError(
            f"target `{target.name}`: "
            f"expected at least {max(_FEWEST, n_samples or 0)} members and as many non-members, "
            f"but got {len(members[1])} and {len(others)}"
        )
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0]))
    order = rng.permutation(others)
    return Sets(
        members=members,
        nonmembers=nonmembers,
        s=np.sort(rng.permutation(len(members[1]))[:n]),
        t=np.sort(order[:n]),
        spare=order[n:],
        warnings=warnings,
    )


def _both(target: Target) -> tuple[Pair, Pair]:
    if target.members is None or target.nonmembers is None:
        missing = "members" if target.members is None else "non-members"
        raise DataError(
            f"target `{target.name}`: expected members and non-members, but it has no {missing}",
            "return a Target with `members` and `nonmembers`, or give weights of `cloister train` and its data",
        )
    return target.members, target.nonmembers


def _without_members(name: str, members: Pair, nonmembers: Pair) -> tuple[_Indices, tuple[str, ...]]:
    """Indices of the non-members that are none of the members."""
    known = set(image_hashes(members[0]))
    is_other = np.array([one not in known for one in image_hashes(nonmembers[0])])
    n_same = int((~is_other).sum())
    if n_same == len(is_other):
        raise DataError(
            f"target `{name}`: expected non-members that are no members, but all {n_same} are",
            "non-members are images that the model was not trained on",
        )
    warnings = (f"{n_same} non-members have the image of a member: they are left out",) if n_same else ()
    return np.flatnonzero(is_other), warnings


def image_hashes(images: npt.NDArray[np.float32]) -> list[bytes]:
    """A hash of each image."""
    return [hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest() for image in images]


def hash_pair(pair: Pair) -> str:
    """Hash of images and labels, in hexadecimal."""
    images, labels = pair
    digest = hashlib.sha256(f"{images.dtype.str} {images.shape}".encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels, dtype=np.int64).data)
    return digest.hexdigest()
