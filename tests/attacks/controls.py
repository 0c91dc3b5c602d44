"""The control of every attack: with members and non-members shuffled there is nothing to find."""

import numpy as np

from cloister.attacks import metrics


def holds_a_half(scores, is_member, *, decided=False):
    """Whether the interval holds 0.5 in as many of 40 shuffles as a 95 % interval should: of `judge`, or the AUC's."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(40):
        shuffled = rng.permutation(is_member)
        if decided:
            found = metrics.judge(scores, shuffled, n_resamples=200)
        else:
            found = metrics.evaluate(scores, shuffled, fprs=(), n_resamples=200).auc
        held += found.low <= 0.5 <= found.high
    return held >= 34
