"""What a model answers whose members the attacker knows, since it is the attacker's own."""

from __future__ import annotations

import dataclasses

from cloister.attacks.arrays import Bools, Floats, Labels, labels_below, logits_of, members_of

__all__ = ["Shadow"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Shadow:
    """A shadow model's answers; architecture and samples need not be the victim's.

    Attributes:
        logits: (N, K), as the victim's are released.
        labels: (N,) in [0, K).
        is_member: (N,) bool: which of them it was trained on; at least two of each kind.

    Raises:
        InputError: arrays that are not so.
    """

    logits: Floats
    labels: Labels
    is_member: Bools

    def __post_init__(self) -> None:
        logits = logits_of(self.logits, "shadow logits")
        n, n_classes = logits.shape
        object.__setattr__(self, "logits", logits)
        object.__setattr__(self, "labels", labels_below(self.labels, n_classes, "shadow labels", (n,)))
        object.__setattr__(self, "is_member", members_of(self.is_member, n, "shadow is_member"))
