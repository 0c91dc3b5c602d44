"""`cloister doctor`: whether this machine has what Cloister needs."""

from __future__ import annotations

from typing import Literal

import click
import msgspec

from cloister.cli import options, ui

__all__ = ["doctor"]


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """One check: `ok`, `warn` or `fail`; what was found; how to mend it."""

    name: str
    state: str
    detail: str
    fix: str | None


class DoctorDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `cloister doctor -f json` prints."""

    schema: Literal["cloister.doctor/1"] = "cloister.doctor/1"
    state: str
    checks: tuple[CheckResult, ...]


@click.command()
@options.output_format
def doctor(format: str) -> int:
    """Check that this machine has what Cloister needs.

    Exits with 3 if a check fails; a warning does no harm to the exit code.
    """
    from cloister.enclave.doctor import checks

    results = tuple(
        CheckResult(name=check.name, state=check.state, detail=check.detail, fix=check.fix or None)
        for check in checks()
    )
    states = {check.state for check in results}
    worst = next((state for state in ("fail", "warn") if state in states), "ok")
    if format == "json":
        ui.json(DoctorDocument(state=worst, checks=results))
    else:
        _show(results)
    return 3 if worst == "fail" else 0


def _show(results: tuple[CheckResult, ...]) -> None:
    ui.table("", ["check", "state", "found"], [(check.name, check.state, check.detail) for check in results])
    mend = [(check.name, check.fix) for check in results if check.fix and check.state != "ok"]
    if mend:
        ui.fields("What to do", mend)
