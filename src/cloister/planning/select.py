"""Which layers a request such as `last:3` or `classifier.*` means."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence

from cloister.errors import PlanError

__all__ = ["select_layers"]


def select_layers(names: Sequence[str], request: str, aliases: Mapping[str, str]) -> dict[str, str]:
    """The layers that a request puts inside, each with the reason.

    Args:
        names: the model's layers in the order of first use.
        request: `all`, `none`, `last:K` (the last K layers), or names and globs, separated by commas.
        aliases: modules that are part of another layer; naming one means that layer.

    Returns:
        Name to reason, in the order of the model.

    Raises:
        PlanError: a name or glob matches nothing, or K is not a number from 1 to the number of layers.
    """
    if request == "none":
        return {}
    if request == "all":
        return dict.fromkeys(names, "asked for: all layers")
    if request.startswith("last:"):
        return _last(names, request)
    reasons: dict[str, str] = {}
    missing = []
    for pattern in (part.strip() for part in request.split(",")):
        matches = fnmatch.filter([*names, *aliases], pattern)
        if not matches:
            missing.append(pattern)
        for match in matches:
            through = f", part of this layer: {match}" if match in aliases else ""
            reasons.setdefault(aliases.get(match, match), f"asked for: {pattern}{through}")
    if missing:
        raise _unknown(missing, [*names, *aliases])
    return {name: reasons[name] for name in names if name in reasons}


def _last(names: Sequence[str], request: str) -> dict[str, str]:
    count = request.removeprefix("last:")
    if not count.isdecimal() or not 1 <= int(count) <= len(names):
        raise PlanError(
            f"--inside: expected last:K with K from 1 to {len(names)}, but got `{request}`",
            f"the model has {len(names)} layers with parameters",
        )
    return dict.fromkeys(names[-int(count) :], f"asked for: the last {count} of {len(names)} layers")


def _unknown(missing: Sequence[str], known: Sequence[str]) -> PlanError:
    near = dict.fromkeys(
        name for pattern in missing for name in difflib.get_close_matches(pattern, known, n=3, cutoff=0.4)
    )
    quoted = ", ".join(f"`{pattern}`" for pattern in missing)
    listed = ", ".join(f"`{name}`" for name in (near or known))
    return PlanError(
        f"--inside: expected layers of the model, but nothing is named {quoted}",
        f"{'nearest names' if near else 'its layers'}: {listed}",
    )
