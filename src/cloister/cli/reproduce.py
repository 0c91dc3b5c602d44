"""`cloister reproduce`: published experiments done again, beside the numbers of their papers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from cloister.cli import options, ui
from cloister.cli.mo2019_exposure import mo2019_exposure
from cloister.outputs import check_output, write_whole
from cloister.units import format_bytes

if TYPE_CHECKING:
    from cloister.reproduce.yang2024_cost import CostDocument, CostRow

__all__ = ["reproduce"]


@click.group()
def reproduce() -> None:
    """Do a published experiment again, beside its paper's numbers."""


reproduce.add_command(mo2019_exposure)


@reproduce.command("yang2024-cost")
@click.option(
    "--budget",
    "budgets",
    type=options.BUDGET,
    multiple=True,
    envvar="CLOISTER_REPRODUCE_YANG2024_COST_BUDGET",
    metavar="SIZE",
    default=("none", "1MiB"),
    show_default=True,
    help="Inside memory, such as 1MiB, or `none` for all that there is; may be given several times.",
)
@click.option(
    "--enclave",
    type=click.Choice(["local", "emulator"]),
    default="local",
    show_default=True,
    help="Where: `local` measures time; `emulator` counts instructions, of the quantized rows.",
)
@click.option(
    "--rounds", type=click.IntRange(1), metavar="N", default=15, show_default=True, help="Of which to take the median."
)
@click.option("-o", "--out", type=options.FILE, metavar="OUT.json", help="Write the table as JSON, too.")
@options.force
@options.output_format
def yang2024_cost(
    budgets: tuple[int | None, ...], enclave: str, rounds: int, out: Path | None, force: bool, format: str
) -> None:
    """Memory and time without and with protection, for the eight rows of a table of Yang et al. (ISLPED 2024).

    Everything inside against the same program with nothing inside, as ratios beside the paper's: its seconds are of a
    Raspberry Pi 3B+.
    """
    if out is not None:
        check_output(out, force=force)
    from cloister.reproduce.yang2024_cost import reproduce_by_count, reproduce_by_time

    with ui.progress() as progress:
        if enclave == "local":
            document = reproduce_by_time(budgets=budgets, rounds=rounds, progress=progress)
        else:
            document = reproduce_by_count(budgets=budgets, repeats=rounds, progress=progress)
    if out is not None:
        write_whole(out, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n", force=force)
    if format == "json":
        ui.json(document)
    else:
        _show(document)


def _show(document: CostDocument) -> None:
    columns = ["victim", "weights", "budget", "inside", "cost", "95 %", "paper", "to float", "paper "]
    title = f"Cost of protection, {document.measured}, {document.enclave} enclave ({document.isolation})"
    ui.table(title, columns, [_cells(row) for row in document.rows], right=",".join(columns[1:]))
    ui.say(
        "(Q): int8; weights: of the whole model; inside: memory of ours; cost: ours / vanilla; "
        "to float: ours / vanilla in float32"
    )
    if document.missing:
        rows = [(one.model, one.row, one.reason) for one in document.missing]
        ui.table("Not reproduced", ["victim", "row", "why"], rows)


def _cells(row: CostRow) -> tuple[str, ...]:
    return (
        row.model + ("(Q)" if row.bits == 8 else ""),
        "" if row.weight_bytes is None else format_bytes(row.weight_bytes),
        "none" if row.budget_bytes is None else format_bytes(row.budget_bytes),
        format_bytes(row.inside_bytes),
        f"{row.found.cost:.2f}",
        f"{row.cost_low:.2f}-{row.cost_high:.2f}",
        f"{row.paper.cost:.2f}",
        "" if row.found.to_float is None else f"{row.found.to_float:.2f}",
        f"{row.paper.to_float:.2f}",
    )
