"""`cloister bench`: what protection costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from cloister.cli import options, ui
from cloister.outputs import check_output, write_whole
from cloister.units import format_bytes

if TYPE_CHECKING:
    from cloister.bench.counts import CountDocument, CountRow

__all__ = ["bench"]


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option(
    "--enclave",
    type=click.Choice(["emulator"]),
    required=True,
    help="Where to measure: `emulator`, OP-TEE in QEMU; it is brought up for this, and ended.",
)
@click.option(
    "--count",
    type=click.Choice(["instructions"]),
    required=True,
    help="What to count: the emulator has no time of its own that would mean anything.",
)
@click.option(
    "--budget",
    "budgets",
    type=options.BUDGET,
    multiple=True,
    envvar="CLOISTER_BENCH_BUDGET",
    metavar="SIZE",
    default=("none", "1MiB", "256KiB"),
    show_default=True,
    help="Inside memory, such as 1MiB, or `none` for all that the board has; may be given several times.",
)
@click.option(
    "--repeats", type=click.IntRange(1), metavar="N", default=5, show_default=True, help="Counts to take the median of."
)
@click.option("-o", "--out", type=options.FILE, metavar="OUT.json", help="Write the counts as JSON, too.")
@options.force
@options.output_format
def bench(
    models: tuple[str, ...],
    enclave: str,
    count: str,
    budgets: tuple[int | None, ...],
    repeats: int,
    out: Path | None,
    force: bool,
    format: str,
) -> None:
    """Count the instructions that models of the zoo take outside and inside; all of them if none is named.

    int8, everything inside against nothing inside, on the same emulated processor, with the parts: crossing, unsealing,
    computing.
    """
    if out is not None:
        check_output(out, force=force)
    from cloister import zoo
    from cloister.bench.counts import count_instructions

    for model in models:
        zoo.check_name(model)
    with ui.progress() as progress:
        document = count_instructions(models or zoo.NAMES, budgets=budgets, repeats=repeats, progress=progress)
    if out is not None:
        write_whole(out, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n", force=force)
    if format == "json":
        ui.json(document)
    else:
        _show(document)


def _show(document: CountDocument) -> None:
    columns = ["model", "inside", "budget", "images", "all", "crossing", "unsealing", "computing"]
    columns += ["a byte", "a MAC", "ratio"]
    title = f"Millions of instructions for an image on {document.board} ({document.isolation})"
    ui.table(title, columns, [_cells(row) for row in document.rows], right=",".join(columns[2:]))
    ui.say(
        "a byte: instructions to open a byte of a slice; a MAC: to compute a multiply-add; ratio: to everything outside"
    )
    if document.missing:
        rows = [(one.model, _budget(one.budget_bytes), one.reason) for one in document.missing]
        ui.table("Not counted", ["model", "budget", "why"], rows)


def _budget(n_bytes: int | None) -> str:
    return "board" if n_bytes is None else format_bytes(n_bytes)


def _cells(row: CountRow) -> tuple[str, ...]:
    return (
        row.model,
        row.inside,
        "" if row.inside == "none" else _budget(row.budget_bytes),
        str(row.images),
        *(f"{n / 1e6:.2f}" for n in (row.instructions, row.crossing, row.unsealing, row.compute)),
        "" if row.unsealing_per_byte is None else f"{row.unsealing_per_byte:.1f}",
        f"{row.compute_per_multiply_add:.3f}",
        f"{row.against_outside:.3f}",
    )
